// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// idPrefix is what a prepared id has before its digits; the store's key is the digits.
const idPrefix = "sha256:"

// entry is how a prepared engine lies in the store.
type entry struct {
	Prepared json.RawMessage `json:"prepared"`
	Files    []stamp         `json:"files"`
}

// stamp tells whether a file is still the one that was verified.
type stamp struct {
	Path string `json:"path"`
	store.Stamp
}

// record puts the prepared engine together and keeps it. The same inputs give the same id, and what is there is returned.
func (s *Service) record(ctx context.Context, planned *plan.Plan, made engine, staged *enginev1.PreparedModel, t *track) (*enginev1.PreparedEngine, error) {
	prepared, err := assemble(planned, made, staged)
	if err != nil {
		return nil, err
	}
	recordKey := plan.RecordKey(planned.Key)
	if known, err := s.Prepared(prepared.GetPreparedId()); err == nil {
		if id, ok := s.facts.Resolved(recordKey); ok && id == prepared.GetPreparedId() {
			t.cached(planned.Step(plan.Record))
			return known, nil
		}
		prepared.PreparedAt = known.GetPreparedAt()
	}
	err = s.do(ctx, t, planned.Step(plan.Record), func(context.Context, *step) error {
		if err := s.put(prepared); err != nil {
			return err
		}
		return s.cfg.Store.PutResolution(recordKey, prepared.GetPreparedId())
	})
	return prepared, err
}

// assemble makes the prepared engine and its id.
func assemble(planned *plan.Plan, made engine, staged *enginev1.PreparedModel) (*enginev1.PreparedEngine, error) {
	spec, ok := proto.Clone(planned.Spec).(*enginev1.PrepareSpec)
	if !ok {
		return nil, reason.New(reason.Internal, "a spec's copy is not a spec", reason.Remedy(defectRemedy))
	}
	model, ok := proto.Clone(staged).(*enginev1.PreparedModel)
	if !ok {
		return nil, reason.New(reason.Internal, "a model's copy is not a model", reason.Remedy(defectRemedy))
	}
	model.Id = spec.GetModel().GetId()
	plan.FillContext(spec.GetLaunch(), int64(model.GetTrainedContextTokens()))
	launch, err := planned.Kind.Launch(made.program, made.probe, engines.Serving{
		Model: model, ContextTokens: spec.GetLaunch().GetContextTokens(), Slots: spec.GetLaunch().GetSlots(), Flags: spec.GetLaunch().GetFlags(),
	})
	if err != nil {
		return nil, err
	}
	prepared := &enginev1.PreparedEngine{
		Engine: made.identity, Process: launch.Process, Model: model, Contract: launch.Contract, Spec: spec,
	}
	prepared.PreparedId, err = preparedID(prepared)
	prepared.PreparedAt = timestamppb.New(time.Now())
	return prepared, err
}

// preparedID is the digest of all but the id itself, the time and the consumer.
func preparedID(prepared *enginev1.PreparedEngine) (string, error) {
	bare := &enginev1.PreparedEngine{
		Engine: prepared.GetEngine(), Process: prepared.GetProcess(), Model: prepared.GetModel(), Contract: prepared.GetContract(), Spec: prepared.GetSpec(),
	}
	digits, err := messageKey(bare)
	return idPrefix + digits, err
}

func (s *Service) put(prepared *enginev1.PreparedEngine) error {
	text, err := protojson.Marshal(prepared)
	if err != nil {
		return fmt.Errorf("encode prepared engine: %w", err)
	}
	kept := entry{Prepared: text}
	for _, path := range paths(prepared) {
		info, err := os.Stat(path)
		if err != nil {
			return storageError("look at "+path, err)
		}
		kept.Files = append(kept.Files, stamp{Path: path, Stamp: store.StampOf(info)})
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return fmt.Errorf("encode prepared engine: %w", err)
	}
	return s.cfg.Store.PutPrepared(strings.TrimPrefix(prepared.GetPreparedId(), idPrefix), data)
}

func paths(prepared *enginev1.PreparedEngine) []string {
	var paths []string
	for _, file := range prepared.GetProcess().GetFiles() {
		paths = append(paths, file.GetPath())
	}
	for _, file := range prepared.GetModel().GetFiles() {
		paths = append(paths, file.GetPath())
	}
	return paths
}

// Prepared returns the prepared engine of id if all its files are there and unchanged, by their stamps. Otherwise, and for
// an id that nobody prepared, the error is PREPARED_NOT_FOUND.
func (s *Service) Prepared(id string) (*enginev1.PreparedEngine, error) {
	data, err := s.cfg.Store.Prepared(strings.TrimPrefix(id, idPrefix))
	if errors.Is(err, store.ErrAbsent) {
		return nil, notPrepared(id, "it was never prepared here", err)
	}
	if err != nil {
		return nil, fmt.Errorf("look up prepared engine %s: %w", id, err)
	}
	prepared, files, err := decode(data)
	if err != nil || prepared.GetPreparedId() != id {
		return nil, notPrepared(id, "its record cannot be read", err)
	}
	for _, file := range files {
		info, err := os.Stat(file.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, storageError("look at "+file.Path, err)
		}
		if err != nil || store.StampOf(info) != file.Stamp {
			return nil, notPrepared(id, "its file "+file.Path+" is gone or was changed", err)
		}
	}
	return prepared, nil
}

func decode(data json.RawMessage) (*enginev1.PreparedEngine, []stamp, error) {
	var kept entry
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, nil, fmt.Errorf("decode prepared engine: %w", err)
	}
	prepared := &enginev1.PreparedEngine{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(kept.Prepared, prepared); err != nil {
		return nil, nil, fmt.Errorf("decode prepared engine: %w", err)
	}
	return prepared, kept.Files, nil
}

func notPrepared(id, why string, err error) error {
	return reason.New(reason.PreparedNotFound, fmt.Sprintf("no prepared engine %s: %s", id, why), reason.Field("prepared_id"),
		reason.Cause(err), reason.Remedy("prepare its spec again"))
}
