// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"io"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// PreloadFlags are what a preload takes.
type PreloadFlags struct {
	// Pool is what it should be.
	Pool PoolFlags
	// RequestID makes a repetition safe.
	RequestID string
}

// Register adds the flags to set.
func (f *PreloadFlags) Register(set *pflag.FlagSet) {
	f.Pool.Register(set)
	set.StringVar(&f.RequestID, "request-id", "", "make a repetition safe even after a failure, by `ID`")
}

// Preload builds the request that the flags describe. extra and stdin are as in Prepare.
func (f *PreloadFlags) Preload(stdin io.Reader, extra []string) (*poolv1.PreloadRequest, error) {
	request := &poolv1.PreloadRequest{}
	if err := f.Pool.read(stdin, request); err != nil {
		return nil, err
	}
	if f.RequestID != "" {
		request.RequestId = f.RequestID
	}
	spec, err := f.Pool.complete(request.GetSpec(), extra)
	if err != nil {
		return nil, err
	}
	request.Spec = spec
	return request, nil
}

// ReloadFlags are what a reload takes.
type ReloadFlags struct {
	// Pool is what it should be.
	Pool PoolFlags
	// AcceptOutage ends the old engines before the new ones are started.
	AcceptOutage bool
	// DryRun only asks what would be done.
	DryRun bool
	// Proof is what the new engines must prove.
	Proof ProofFlags
}

// ProofFlags are what new engines must prove.
type ProofFlags struct {
	Prompt             string
	MaxTokens          uint32
	Contains           string
	MinTokensPerSecond float64
	Timeout            time.Duration
}

// Register adds the flags to set.
func (f *ReloadFlags) Register(set *pflag.FlagSet) {
	f.Pool.Register(set)
	set.BoolVar(&f.AcceptOutage, "accept-outage", false, "end the old engines first: for a fixed port, or where memory does not hold both")
	set.BoolVar(&f.DryRun, "dry-run", false, "only say what would be done")
	p := &f.Proof
	set.StringVar(&p.Prompt, "prove-prompt", "", "each new engine has to complete `TEXT` before it serves")
	set.Uint32Var(&p.MaxTokens, "prove-tokens", 0, "with at most `N` tokens (0: 16)")
	set.StringVar(&p.Contains, "prove-contains", "", "and the answer has to hold `TEXT`")
	set.Float64Var(&p.MinTokensPerSecond, "prove-rate", 0, "and come with at least `N` tokens a second (0: any)")
	set.DurationVar(&p.Timeout, "prove-timeout", 0, "and within `TIME` (0: 60s)")
}

// NeedsCurrent tells whether the flags say what is to change of the pool's present spec, and not what the pool should be.
func (f *ReloadFlags) NeedsCurrent() bool {
	s := &f.Pool.Spec
	return f.Pool.Pool != "" && s.File == "" && s.Preset == "" && f.Pool.PreparedID == "" && len(s.engineFlags()) == 0
}

// Reload builds the request that the flags describe. current is the pool's present spec if NeedsCurrent, and stays as it
// is. extra and stdin are as in Prepare.
func (f *ReloadFlags) Reload(stdin io.Reader, extra []string, current *poolv1.PoolSpec) (*poolv1.ReloadRequest, error) {
	request := &poolv1.ReloadRequest{}
	if err := f.Pool.read(stdin, request); err != nil {
		return nil, err
	}
	base := request.GetSpec()
	if current != nil {
		base = proto.CloneOf(current)
	}
	spec, err := f.Pool.complete(base, extra)
	if err != nil {
		return nil, err
	}
	request.Spec = spec
	request.AcceptOutage = request.AcceptOutage || f.AcceptOutage
	request.DryRun = request.DryRun || f.DryRun
	if err := f.Proof.override(request); err != nil {
		return nil, err
	}
	return request, nil
}

// override puts the proof that was asked for over the request's.
func (p *ProofFlags) override(request *poolv1.ReloadRequest) error {
	if *p == (ProofFlags{}) {
		return nil
	}
	if request.GetProof() == nil {
		request.Proof = &poolv1.ReloadProof{}
	}
	proof := request.GetProof()
	if p.Prompt != "" {
		proof.Prompt = p.Prompt
	}
	if proof.GetPrompt() == "" {
		return reason.New(reason.InvalidParams, "there is nothing to complete", reason.Field("--prove-prompt"),
			reason.Remedy("give --prove-prompt TEXT with the other --prove flags"))
	}
	if p.MaxTokens != 0 {
		proof.MaxTokens = p.MaxTokens
	}
	if p.Contains != "" {
		proof.Contains = p.Contains
	}
	if p.MinTokensPerSecond != 0 {
		proof.MinTokensPerSecond = p.MinTokensPerSecond
	}
	overrideDuration(&proof.Timeout, p.Timeout)
	return nil
}

// read fills request from the file, if one is given.
func (f *PoolFlags) read(stdin io.Reader, request proto.Message) error {
	if err := f.Spec.checkOrigin(); err != nil {
		return err
	}
	if f.Spec.File == "" {
		return nil
	}
	return readFile(f.Spec.File, stdin, request)
}

// complete puts the flags over spec, which may be nil.
func (f *PoolFlags) complete(spec *poolv1.PoolSpec, extra []string) (*poolv1.PoolSpec, error) {
	if spec == nil {
		spec = &poolv1.PoolSpec{}
	}
	if err := f.workload(spec, extra); err != nil {
		return nil, err
	}
	if err := f.override(spec); err != nil {
		return nil, err
	}
	if spec.GetPoolId() == "" {
		return nil, reason.New(reason.InvalidParams, "the pool has no name", reason.Field("--pool"),
			reason.Remedy("give --pool NAME, or spec.poolId in the file"))
	}
	return spec, nil
}

// workload fills in what runs in the pool: something prepared before, or what the flags say over what spec says.
func (f *PoolFlags) workload(spec *poolv1.PoolSpec, extra []string) error {
	made, err := f.Spec.prepareSpec(spec.GetPrepare(), extra)
	if err != nil {
		return err
	}
	if f.PreparedID != "" {
		if made != nil {
			return reason.New(reason.InvalidParams, "a prepared engine cannot be described as well",
				reason.Field("--prepared-id"), reason.Remedy("give --prepared-id, or an engine and a model"))
		}
		spec.Workload = &poolv1.PoolSpec_PreparedId{PreparedId: f.PreparedID}
		return nil
	}
	if made != nil {
		if spec.GetPreparedId() != "" {
			return reason.New(reason.InvalidParams, "a prepared engine cannot be described as well",
				reason.Field("spec.preparedId"), reason.Remedy("leave out spec.preparedId, or the engine and model flags"))
		}
		spec.Workload = &poolv1.PoolSpec_Prepare{Prepare: made}
	}
	if spec.Workload == nil {
		return noEngine()
	}
	return nil
}
