// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// checkSpec returns what no single field tells: how fields contradict each other.
func checkSpec(s registry.Spec) error {
	var port, idle error
	if s.Port != 0 && s.Replicas > 1 {
		port = reason.New(reason.InvalidParams, "several replicas cannot share one port", reason.Field("spec.port"),
			reason.Remedy("leave the port at 0, or ask for one replica"))
	}
	switch {
	case s.Residency == registry.TTL && s.IdleTimeout == 0:
		idle = reason.New(reason.InvalidParams, "a TTL pool needs an idle timeout", reason.Field("spec.idle_timeout"),
			reason.Remedy("say after how long without a request it is unloaded, or make it PINNED"))
	case s.Residency == registry.Pinned && s.IdleTimeout != 0:
		idle = reason.New(reason.InvalidParams, "a PINNED pool is never unloaded", reason.Field("spec.idle_timeout"),
			reason.Remedy("leave the idle timeout out, or make it TTL"))
	}
	return together(port, idle)
}

// checkProof refuses a proof that says how the answer has to be and not to what: it would prove nothing.
func checkProof(p *poolv1.ReloadProof) error {
	if p.GetPrompt() != "" || p.GetContains() == "" && p.GetMinTokensPerSecond() == 0 {
		return nil
	}
	return reason.New(reason.InvalidParams, "an answer is asked for, and no question", reason.Field("proof.prompt"),
		reason.Remedy("say what new engines have to complete, or leave the proof out"))
}

// together is nil if all errors are, the only one, or one error with the fields and the remedies of all. One that is no
// *reason.Error counts alone.
func together(errs ...error) error {
	var only error
	var options []reason.Option
	var problems, remedies []string
	for _, err := range errs {
		if err == nil {
			continue
		}
		typed, ok := reason.As(err)
		if !ok {
			return err
		}
		problem, remedy := typed.Message, typed.Remedy
		for _, field := range typed.Fields {
			if field.Problem == "" { // The message is about this one field, and names it only as long as it is alone.
				field.Problem = typed.Message
				problem, remedy = field.Name+": "+problem, field.Name+": "+remedy
			}
			options = append(options, reason.Violation(field.Name, field.Problem))
		}
		problems, remedies = append(problems, problem), append(remedies, remedy)
		only = err
	}
	if len(problems) <= 1 {
		return only
	}
	options = append(options, reason.Remedy(strings.Join(remedies, "; ")))
	return reason.New(reason.InvalidParams, strings.Join(problems, "; "), options...)
}
