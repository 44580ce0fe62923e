"""What a result file says about the machine: its kind, not its name."""


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)
