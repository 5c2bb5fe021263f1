import pytest

from worker.endpoint import Endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("postgresql://u:p@db.example:6543/x?sslmode=require", Endpoint("db.example", 6543)),
        ("redis://redis", Endpoint("redis", 6379)),
        ("http://mlflow/", Endpoint("mlflow", 80)),
        ("http://[::1]:5000", Endpoint("::1", 5000)),
    ],
)
def test_a_url_leads_somewhere_and_can_lead_elsewhere(url, endpoint):
    assert Endpoint.of(url) == endpoint
    assert Endpoint.of(Endpoint("127.0.0.1", 4).instead_in(url)) == Endpoint("127.0.0.1", 4)


def test_the_rest_of_a_url_stays():
    url = Endpoint("127.0.0.1", 4).instead_in("postgresql+psycopg://u:p%40@db/x?sslmode=require")
    assert url == "postgresql+psycopg://u:p%40@127.0.0.1:4/x?sslmode=require"


@pytest.mark.parametrize("url", ["sqlite:////srv/secret.db", "redis+socket:///secret.sock", "https://secret/"])
def test_a_url_that_no_tunnel_leads_to_is_refused_and_not_shown(url):
    with pytest.raises(ValueError, match=r"by host and port, in URLs of postgresql, redis, http") as refused:
        Endpoint.of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("lab.example", "lab.example:8022"), (" 10.0.0.7:443 ", "10.0.0.7:443"), ("[2001:db8::1]:9", "[2001:db8::1]:9")],
)
def test_an_address_is_typed_with_or_without_its_port(text, said):
    assert str(Endpoint.typed(text, port=8022)) == said


@pytest.mark.parametrize("text", ["", "http://lab", "lab:port", "lab:99999", "me@lab", "lab/x"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="an address must be host:port, got"):
        Endpoint.typed(text, port=8022)
