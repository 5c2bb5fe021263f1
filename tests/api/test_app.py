import json
import os
import subprocess
import sys

import pytest
from sqlalchemy import text

from api.app import create_app
from worker import schema


def test_importing_the_api_brings_nothing_that_is_slow(tmp_path):
    program = "import json, sys, api.app; api.app.create_app(); print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "NORMCORE_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    loaded = json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    slow = {"torch", "numpy", "mlflow", "celery", "kombu", "redis", "httpx", "alembic", "sklearn", "datasets", "pandas"}
    assert slow.isdisjoint(name.partition(".")[0] for name in loaded)


def test_the_api_does_not_start_on_a_book_that_a_later_version_has_migrated(book, settings):
    with book.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    newest = schema.known()[-1]
    with pytest.raises(
        SystemExit, match=rf"^the API does not start: .* this version knows, 0001 to {newest}, got 0999"
    ):
        create_app(settings)
