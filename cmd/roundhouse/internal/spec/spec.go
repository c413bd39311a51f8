// SPDX-License-Identifier: Apache-2.0

// Package spec turns what a person wrote, in a file or on the command line, into requests to Roundhouse.
//
// A file is strict: a key that the request does not have is refused by name. Flags complete a file or a preset; the
// engine comes from one place only. What comes out is well formed, not yet valid: the services validate it. Every error
// is a *reason.Error with reason INVALID_PARAMS that names the flag or the key. The package keeps nothing.
package spec

import (
	"io"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// Prepare builds the request that the flags describe. extra are the engine flags that were given after "--"; stdin is
// read if the file is "-".
func (f *Flags) Prepare(stdin io.Reader, extra []string) (*provisionerv1.PrepareRequest, error) {
	if err := f.checkOrigin(); err != nil {
		return nil, err
	}
	request := &provisionerv1.PrepareRequest{}
	if f.File != "" {
		if err := readFile(f.File, stdin, request); err != nil {
			return nil, err
		}
	}
	made, err := f.prepareSpec(request.GetSpec(), extra)
	if err != nil {
		return nil, err
	}
	if made == nil {
		return nil, noEngine()
	}
	request.Spec = made
	return request, nil
}

// prepareSpec puts the flags over base, which may be nil. It answers nil if neither says anything.
func (f *Flags) prepareSpec(base *enginev1.PrepareSpec, extra []string) (*enginev1.PrepareSpec, error) {
	if f.Preset != "" {
		preset, err := Preset(f.Preset)
		if err != nil {
			return nil, err
		}
		base = preset
	}
	if given := f.engineFlags(); len(given) > 0 {
		if base.GetEngine() != nil {
			return nil, conflict(given[0], f.baseName())
		}
		engine, err := f.engine()
		if err != nil {
			return nil, err
		}
		if base == nil {
			base = &enginev1.PrepareSpec{}
		}
		base.Engine = engine
	}
	if base == nil {
		if f.Model.empty() && f.Launch.empty() && len(extra) == 0 {
			return nil, nil
		}
		return nil, noEngine()
	}
	if err := f.Model.override(base); err != nil {
		return nil, err
	}
	f.Launch.override(base, extra)
	if base.GetModel() == nil {
		return nil, reason.New(reason.InvalidParams, "no model is named", reason.Field("--model"),
			reason.Remedy("give --model URI, such as file:/models/x.gguf or pypi:name==version/path"))
	}
	return base, nil
}

// checkOrigin refuses a file beside a preset.
func (f *Flags) checkOrigin() error {
	if f.Preset != "" && f.File != "" {
		return conflict("--preset", "-f")
	}
	return nil
}

// baseName is what the engine was given by, for a conflict's message.
func (f *Flags) baseName() string {
	if f.Preset != "" {
		return "--preset"
	}
	return "-f"
}

func noEngine() error {
	return reason.New(reason.InvalidParams, "no engine is named", reason.Field("--engine"),
		reason.Remedy("give --preset NAME, -f FILE, or --engine KIND with one of --package, --git, --bundle, --archive, --external"))
}

func conflict(flag, with string) error {
	return reason.New(reason.InvalidParams, "cannot be given together with "+with, reason.Field(flag),
		reason.Remedy("leave one of them out"))
}
