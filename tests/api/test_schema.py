"""Requests made from the OpenAPI document, right and wrong ones: none is answered otherwise than it says."""

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from api.app import create_app
from worker.settings import Settings

schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())

MORE_THAN_A_SCHEMA_SAYS = {"submit_job", "preview_job", "list_jobs", "list_metrics"}
"""Operations that refuse what a JSON schema lets pass: parts that do not go together, cursors that no page gave."""


@schema.parametrize()
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
def test_the_api_does_what_its_document_says(case, module_server):
    lenient = case.operation.definition.raw["operationId"] in MORE_THAN_A_SCHEMA_SAYS
    case.call_and_validate(base_url=module_server, excluded_checks=[positive_data_acceptance] if lenient else [])
