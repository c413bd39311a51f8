# SPDX-License-Identifier: Apache-2.0
"""Serves one model with the llama.cpp HTTP server of the xllamacpp wheel that lies in this file's folder.

It takes the flags of llama-server that it lists for --help, and no others. SIGTERM ends it with code 0 once no request
is being worked on; a second SIGTERM ends it with code 1 at once. Until the model is loaded a signal simply kills it.
"""

import os
import signal
import sys
import threading
import time

TREE = os.path.dirname(os.path.abspath(__file__))

# How often requests in flight are counted after SIGTERM, in seconds.
DRAIN_INTERVAL = 0.02

# name, other names, the value as --help prints it ("" for a switch), what it does.
FLAGS = [
    ("--help", ["-h"], "", "print usage and exit"),
    ("--version", [], "", "show version and build info"),
    ("--host", [], "HOST", "address to listen on"),
    ("--port", [], "PORT", "port to listen on; 0 picks a free one"),
    ("--model", ["-m"], "FNAME", "model path to load"),
    ("--alias", ["-a"], "STRING", "id under which the model is served"),
    ("--ctx-size", ["-c"], "N", "size of the context of all slots together"),
    ("--parallel", ["-np"], "N", "number of slots"),
    ("--metrics", [], "", "serve /metrics"),
    ("--no-warmup", [], "", "skip the empty run after loading"),
    ("--fit", ["-fit"], "[on|off]", "adjust unset parameters to the memory of the devices"),
    ("--no-ui", [], "", "serve no web page"),
    ("--offline", [], "", "never use the network"),
    ("--threads", ["-t"], "N", "number of threads to use during generation"),
    ("--threads-batch", ["-tb"], "N", "number of threads to use for prompts"),
    ("--threads-http", [], "N", "number of threads that answer HTTP requests"),
    ("--batch-size", ["-b"], "N", "logical maximum batch size"),
    ("--ubatch-size", ["-ub"], "N", "physical maximum batch size"),
    ("--n-predict", ["-n", "--predict"], "N", "number of tokens to predict; -1 is no limit"),
    ("--cache-ram", ["-cram"], "N", "host memory for cached prompts, in MiB"),
    ("--flash-attn", ["-fa"], "[on|off|auto]", "use flash attention"),
    ("--chat-template", [], "JINJA_TEMPLATE", "template for chats, in place of the model's own"),
    ("--no-jinja", [], "", "do not use the template engine for chats"),
    ("--timeout", ["-to"], "N", "seconds that a read or write of a connection may take"),
    ("--verbosity", ["-lv"], "N", "how much is logged, 0 to 5"),
]


def usage():
    lines = []
    for name, others, value, text in FLAGS:
        left = ", ".join(others + [name])
        if value:
            left += " " + value
        lines.append(f"{left:<40}{text}" if len(left) < 39 else f"{left}\n{'':<40}{text}")
    return "\n".join(lines)


def fail(message):
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def parse(argv):
    known = {}
    for name, others, value, _ in FLAGS:
        for spelling in [name] + others:
            known[spelling] = (name, value)
    flags, i = {}, 0
    while i < len(argv):
        if argv[i] not in known:
            fail(f"invalid argument: {argv[i]}")
        name, value = known[argv[i]]
        if not value:
            flags[name] = ""
        elif i + 1 < len(argv):
            i += 1
            flags[name] = argv[i]
        else:
            fail(f"invalid argument: {argv[i]} wants a value")
        i += 1
    return flags


def number(flags, name):
    try:
        return int(flags[name])
    except ValueError:
        fail(f"invalid argument: {name} {flags[name]} is not a number")


def choice(flags, name, values):
    if flags[name] not in values:
        fail(f"invalid argument: {name} {flags[name]} is none of {', '.join(values)}")
    return values[flags[name]]


def parameters(engine, flags):
    params = engine.CommonParams()
    params.endpoint_slots = True
    params.endpoint_metrics = "--metrics" in flags
    params.warmup = "--no-warmup" not in flags
    params.ui = "--no-ui" not in flags
    params.offline = "--offline" in flags
    if "--no-jinja" in flags:
        params.use_jinja = False
    for name in ("--host", "--port", "--model", "--alias"):
        if name not in flags:
            fail(f"invalid argument: {name} is missing")
    params.hostnames = [flags["--host"]]
    params.model.path = flags["--model"]
    params.model_alias = {flags["--alias"]}
    if "--chat-template" in flags:
        params.chat_template = flags["--chat-template"]
    numbers = {
        "--port": (params, ["port"]),
        "--ctx-size": (params, ["n_ctx"]),
        "--parallel": (params, ["n_parallel"]),
        "--threads": (params.cpuparams, ["n_threads"]),
        "--threads-batch": (params.cpuparams_batch, ["n_threads"]),
        "--threads-http": (params, ["n_threads_http"]),
        "--batch-size": (params, ["n_batch"]),
        "--ubatch-size": (params, ["n_ubatch"]),
        "--n-predict": (params, ["n_predict"]),
        "--cache-ram": (params, ["cache_ram_mib"]),
        "--timeout": (params, ["timeout_read", "timeout_write"]),
        "--verbosity": (params, ["verbosity"]),
    }
    for name, (target, fields) in numbers.items():
        if name in flags:
            for field in fields:
                setattr(target, field, number(flags, name))
    if "--fit" in flags:
        params.fit_params = choice(flags, "--fit", {"on": True, "off": False})
    if "--flash-attn" in flags:
        kinds = engine.llama_flash_attn_type
        params.flash_attn_type = choice(flags, "--flash-attn", {
            "on": kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED,
            "off": kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            "auto": kinds.LLAMA_FLASH_ATTN_TYPE_AUTO,
        })
    return params


def in_flight(server):
    total = 0.0
    for line in server.handle_metrics().splitlines():
        if line.startswith(("llamacpp:requests_processing ", "llamacpp:requests_deferred ")):
            total += float(line.split()[1])
    return total


def main(argv):
    flags = parse(argv)
    if "--help" in flags:
        print(usage())
        return
    sys.path.insert(0, TREE)
    import xllamacpp as engine

    if "--version" in flags:
        print(f"version: {engine.__version__}")
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    params = parameters(engine, flags)
    try:
        server = engine.Server(params)
    except Exception as error:  # whatever it is, the engine is not going to serve
        fail(f"server did not start: {error}")

    stop = threading.Event()

    def on_signal(signum, frame):
        if stop.is_set():
            os._exit(1)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    print(f"ready: {server.listening_address}", flush=True)
    stop.wait()
    while in_flight(server) > 0:
        time.sleep(DRAIN_INTERVAL)
    sys.stdout.flush()
    os._exit(0)


main(sys.argv[1:])
