import json
import subprocess
import sys


def test_importing_the_api_brings_nothing_that_is_slow():
    program = "import json, sys, api.app; api.app.create_app(); print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    slow = {"torch", "numpy", "mlflow", "celery", "kombu", "redis", "httpx", "alembic", "sklearn", "datasets", "pandas"}
    assert slow.isdisjoint(name.partition(".")[0] for name in loaded)
