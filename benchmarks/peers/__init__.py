"""The engines that Corral is compared with on a CPU: how each is installed, given a model, and run.

`work` says what is run, `environment` makes the virtual environments, `models` the model files, `run` the
processes, and `table` what comes of it. Each other module is one peer. A peer's module is imported twice:
here, where it says what it needs, and inside its own environment, where it runs. So it imports nothing at its
top but the standard library and `peers.base`.
"""
