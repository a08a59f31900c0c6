"""The engines that `benchmarks.cpu_decode` compares, each in a process of its own; and the files that they load."""
