import pytest

from api.problems import Refused
from api.strict_json import loads


def test_json_is_read_as_python_reads_it():
    text = '{"a": [1, -2.5e3, true, false, null, "é\\u00e9 \\ud83d\\ude00"], "": {}, "big": 9223372036854775807}'
    assert loads(text.encode()) == {"a": [1, -2500.0, True, False, None, "éé 😀"], "": {}, "big": 2**63 - 1}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is not JSON: Expecting value at line 1, column 1"),
        (b'{"steps": 1,}', "is not JSON"),
        (b'{"steps": 1} {}', "is not JSON: Extra data"),
        (b"{'steps': 1}", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        ('{"a": "ä"}'.encode("latin-1"), "the body is not UTF-8 at byte 7; encode it as UTF-8"),
        ("{}".encode("utf-16"), "the body is not UTF-8 at byte 0"),
        (b'{"lr": NaN}', "NaN is not a JSON number; send a finite one"),
        (b'{"lr": Infinity}', "Infinity is not a JSON number"),
        (b'{"lr": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"lr": 1, "lr": 2}', 'the key "lr" stands twice in an object; keep one'),
        (b'[{"a": {"b": 1, "b": 1}}]', 'the key "b" stands twice'),
        (b"[9223372036854775808]", "an integer lies outside 64 bits"),
        (b"-" + b"9" * 4000, "an integer lies outside 64 bits"),
        (b"9" * 100_000, "an integer lies outside 64 bits"),
        (b'{"a": "x\\u0000y"}', "holds the NUL character"),
        (b'{"a\\u0000": 1}', "holds the NUL character"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[" * 40 + b"]" * 40, "nested deeper than 32 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 32 levels"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "nested deeper than 32 levels"),
    ],
)
def test_what_is_not_strict_json_is_refused(body, sentence):
    with pytest.raises(Refused) as refused:
        loads(body)
    assert refused.value.code == "malformed-json"
    assert sentence in refused.value.detail


def test_thirty_two_levels_are_read():
    assert loads(b"[" * 32 + b"]" * 32)
