// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// options are the flags.
type options struct {
	host, model, alias string
	port, slots        int

	exit       int           // end with this code in place of loading; 0 means no, unless it crashes later.
	signal     int           // be killed by this signal in place of loading; 0 means no.
	lastWords  string        // print this before either.
	crashWhen  string        // end so only once this file exists.
	crashOnce  string        // end so only once a file of this pattern exists, and remove that.
	crashAfter time.Duration // end so only this long after getting ready; negative means no.
	growOnce   string        // take a gigabyte of memory once this file exists, and remove that.
	noise      int           // print so many bytes of output first.
	forks      int           // start so many processes in sessions of their own, which ignore SIGTERM.
	loadUntil  string        // answer 503 until this file exists.
	stall      bool          // answer 503 for ever and do nothing.
	hold       string        // after its first token each answer waits until this file exists.
	pause      time.Duration // between two tokens.
	modelID    string        // say that this model is served.
	behave     []string      // deaf, mute and the like.
	behaveWhen string        // misbehave only while this file exists.
}

// The values of --fake-behave.
const (
	deaf      = "deaf"      // ignores SIGTERM.
	mute      = "mute"      // does not listen.
	secretive = "secretive" // never answers /metrics.
	stuck     = "stuck"     // makes no token more, and lets no request go; all else is answered.
	frozen    = "freeze"    // answers nothing any more.
	wrong     = "wrong-answer"
	slow      = "slow" // makes tokens a hundred times as slowly.
)

// The texts that --fake-last-words has names for, as llama-server v0.5.0 would print them.
func lastWords() map[string]string {
	return map[string]string{
		"@cuda-oom": `E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 22018.45 MiB on device 0: cudaMalloc failed: out of memory
E alloc_tensor_range: failed to allocate CUDA0 buffer of size 23088020480
E llama_model_load: error loading model: unable to allocate CUDA0 buffer
E llama_model_load_from_file_impl: failed to load model
E srv  llama_server: exiting due to model loading error`,
		"@gpu-fault": `E CUDA error: unspecified launch failure
E   current device: 0, in function ggml_backend_cuda_synchronize at ggml-cuda.cu:3021
E   cudaStreamSynchronize(cuda_ctx->stream())
ggml-cuda.cu:108: CUDA error`,
	}
}

// help lists the flags in the form of the real one's list.
const help = `----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set model name aliases
--host HOST                             ip address to listen
--port PORT                             port to listen
--reuse-port                            allow multiple sockets to bind to the same port
-np,   --parallel N                     number of server slots
--metrics                               enable prometheus compatible metrics endpoint
--no-warmup                             skip warming up the model
--no-ui                                 no web page
--offline                               fetch nothing
--fake-exit N                           end with this code in place of loading
--fake-signal N                         be killed by this signal in place of loading
--fake-last-words TEXT                  print this before either; @cuda-oom and @gpu-fault stand for what the real one says then
--fake-crash-when FILE                  end so, with code 0 if neither is given, only once this file exists
--fake-crash-once PATTERN               likewise, once there is a file that matches; it is removed, so each one ends one engine
--fake-crash-after DURATION             likewise, this long after getting ready
--fake-grow-once FILE                   take a gigabyte of memory once this file exists; it is removed, so it grows one engine
--fake-noise N                          print so many bytes first
--fake-forks N                          start so many processes in sessions of their own
--fake-load-until FILE                  answer 503 until this file exists
--fake-stall                            answer 503 for ever and do nothing; with mute nothing of it moves
--fake-hold FILE                        after its first token each answer waits until this file exists
--fake-pause DURATION                   time between two tokens
--fake-model-id ID                      say that this model is served
--fake-behave HOW                       deaf (to SIGTERM), mute (does not listen), or once it is ready: secretive (never answers
                                        /metrics), stuck (makes no token more and keeps its requests), freeze (answers nothing),
                                        wrong-answer, slow (a hundred times the pause); repeatable
--fake-behave-when FILE                 misbehave, deaf and mute apart, only while this file exists
`

// switches are the flags without a value; those of the real one change nothing.
func (o *options) switches() map[string]*bool {
	return map[string]*bool{
		"--metrics": new(bool), "--no-warmup": new(bool), "--no-ui": new(bool), "--offline": new(bool), "--fake-stall": &o.stall,
	}
}

// values are the flags with a value, and what takes it.
func (o *options) values() map[string]func(string) error {
	text := func(target *string) func(string) error {
		return func(value string) error { *target = value; return nil }
	}
	number := func(target *int) func(string) (err error) {
		return func(value string) (err error) { *target, err = strconv.Atoi(value); return err }
	}
	duration := func(target *time.Duration) func(string) error {
		return func(value string) (err error) { *target, err = time.ParseDuration(value); return err }
	}
	return map[string]func(string) error{
		"--host": text(&o.host), "--model": text(&o.model), "--alias": text(&o.alias), "--fit": text(new(string)),
		"--port": number(&o.port), "--parallel": number(&o.slots), "--ctx-size": number(new(int)), "--threads": number(new(int)),
		"--fake-exit": number(&o.exit), "--fake-signal": number(&o.signal), "--fake-last-words": text(&o.lastWords),
		"--fake-crash-when": text(&o.crashWhen), "--fake-crash-once": text(&o.crashOnce), "--fake-crash-after": duration(&o.crashAfter),
		"--fake-grow-once": text(&o.growOnce),
		"--fake-noise":     number(&o.noise), "--fake-forks": number(&o.forks), "--fake-load-until": text(&o.loadUntil),
		"--fake-hold": text(&o.hold), "--fake-pause": duration(&o.pause), "--fake-model-id": text(&o.modelID),
		"--fake-behave":      func(value string) error { o.behave = append(o.behave, value); return nil },
		"--fake-behave-when": text(&o.behaveWhen),
	}
}

func parse(args []string) (options, error) {
	opts := options{pause: time.Millisecond, crashAfter: -1, slots: 1}
	switches, values := opts.switches(), opts.values()
	for i := 0; i < len(args); i++ {
		name := args[i]
		if set := switches[name]; set != nil {
			*set = true
			continue
		}
		take := values[name]
		if take == nil {
			return options{}, fmt.Errorf("%s is unknown", name)
		}
		if i++; i == len(args) {
			return options{}, fmt.Errorf("%s wants a value", name)
		}
		if err := take(args[i]); err != nil {
			return options{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	if text, named := lastWords()[opts.lastWords]; named {
		opts.lastWords = text
	}
	return opts, nil
}

// is tells whether it was told to be so.
func (o *options) is(how string) bool { return slices.Contains(o.behave, how) }

// now tells whether it was told to be so and the time for it has come.
func (o *options) now(how string) bool {
	return o.is(how) && (o.behaveWhen == "" || exists(o.behaveWhen))
}

// crashesLater tells whether it crashes at some event and not in place of loading.
func (o *options) crashesLater() bool {
	return o.crashWhen != "" || o.crashOnce != "" || o.crashAfter >= 0
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
