import hashlib

import torch

from normcore.seeds import generator, stream_seed


def test_stream_seed_is_the_first_63_bits_of_the_hash_of_the_path():
    digest = hashlib.sha256(b"(7, 'noise', 3, 'x')").hexdigest()
    assert stream_seed(7, "noise", 3, "x") == int(digest[:16], 16) >> 1


def test_paths_that_read_alike_are_different_streams():
    paths = [(0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (0, 1), (0, "1"), (1,), (1, "ab", "c")]
    assert len({stream_seed(*path) for path in paths}) == len(paths)


def test_a_stream_starts_anew_each_time_and_another_stream_differs():
    first, again, other = (torch.rand(8, generator=generator("cpu", 0, "order", n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(8, generator=generator("cpu", 0, "order", 1))
    assert torch.equal(torch.get_rng_state(), before)
