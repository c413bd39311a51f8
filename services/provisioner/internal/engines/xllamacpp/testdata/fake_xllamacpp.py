# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the wheel: it serves nothing, and says how many requests are in flight by the
number in a file; for each time that it was asked it adds a dot to another."""

import os
import types

__version__ = "1.2.3"


class llama_flash_attn_type:
    LLAMA_FLASH_ATTN_TYPE_ENABLED = 1
    LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
    LLAMA_FLASH_ATTN_TYPE_AUTO = -1


class CommonParams:
    def __init__(self):
        self.model = types.SimpleNamespace(path="")
        self.cpuparams = types.SimpleNamespace(n_threads=-1)
        self.cpuparams_batch = types.SimpleNamespace(n_threads=-1)


class Server:
    def __init__(self, params):
        if not os.path.exists(params.model.path):
            raise RuntimeError("no such model")
        self.params = params
        self.listening_address = f"http://{params.hostnames[0]}:{params.port}"
        shown = dict(vars(params), model=params.model.path, threads=params.cpuparams.n_threads)
        del shown["cpuparams"], shown["cpuparams_batch"]
        for name in sorted(shown):
            print(f"param {name}={shown[name]}", flush=True)

    def handle_metrics(self):
        folder = os.path.dirname(self.params.model.path)
        with open(os.path.join(folder, "busy"), encoding="ascii") as file:
            busy = file.read().strip()
        with open(os.path.join(folder, "asked"), "a", encoding="ascii") as file:
            file.write(".")
        return f"# HELP\nllamacpp:requests_processing {busy}\nllamacpp:requests_deferred 0\nother 7\n"
