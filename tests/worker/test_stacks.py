from worker.stacks import Process, processes


def test_a_worker_s_processes_are_found_by_the_modules_they_run(tmp_path):
    commands = {
        "1": ["/sbin/docker-init", "--", "python", "-m", "worker.run"],
        "2": ["sleep", "infinity"],
        "20": ["/opt/normcore/bin/python3", "-P", "-m", "worker.trainer", "--device", "cpu"],
        "7": ["python", "-m", "worker.run"],
        "30": ["python", "-m", "worker.stacks"],
        "self": ["python", "-m", "worker.run"],
    }
    for name, words in commands.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cmdline").write_text("".join(f"{word}\0" for word in words))
    (tmp_path / "99").mkdir()  # has ended
    assert processes(tmp_path) == [
        Process(7, "python -m worker.run"),
        Process(20, "/opt/normcore/bin/python3 -P -m worker.trainer --device cpu"),
    ]
