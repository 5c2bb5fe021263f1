import re

import pytest

from api.problem_types import PROBLEM_TYPES


@pytest.fixture
def page(client):
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def test_the_root_leads_to_the_page(client, page):
    assert client.get("/").text == page


def test_the_page_needs_no_other_host(page):
    assert "<script" not in page
    assert "<link" not in page
    assert re.findall(r'(?:src|href)="(?!/)', page) == []


def test_the_page_shows_every_address_and_every_problem(client, page):
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    for kind in PROBLEM_TYPES.values():
        assert f'<a href="{kind.uri}">' in page


def test_its_links_lead_somewhere(client, page):
    for link in set(re.findall(r'href="(/[^"]*)"', page)):
        assert client.get(link).status_code == 200


def test_its_command_orders_a_job(client, page):
    command = re.search(r"<pre>curl --json &#x27;(.*)&#x27; http://testserver(/v1/jobs)</pre>", page)
    body = command[1].replace("&quot;", '"')
    answer = client.post(command[2], content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 201
