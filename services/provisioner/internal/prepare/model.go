// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/model"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// roleWeights is the role of a model's file in the store.
const roleWeights = "weights"

// model stages the model of a plan. The result has no id: that is the spec's.
func (s *Service) model(ctx context.Context, planned *plan.Plan, t *track) (*enginev1.PreparedModel, error) {
	file, err := s.fetch(ctx, planned.Step(plan.ModelFetch), planned.Model, t)
	if err != nil {
		return nil, err
	}
	inspect := planned.Step(plan.ModelInspect)
	header, known := recall[model.Info](s.cfg.Store, plan.InspectKey(file.Blob.Digest))
	if known {
		if staged, err := s.cfg.Store.Model(modelKey(file)); err == nil {
			t.cached(inspect)
			return describe(header, staged), nil
		}
	}
	var staged store.Model
	err = s.do(ctx, t, inspect, func(ctx context.Context, _ *step) (err error) {
		if header, err = readHeader(file.Blob); err != nil {
			return s.refused(ctx, plan.FieldModel, file.Blob.Digest, err)
		}
		staged, err = s.cfg.Store.PublishModel(ctx, store.ModelManifest{
			ID: modelKey(file), Files: []store.ModelFile{{Name: file.Name, Role: roleWeights, Digest: file.Blob.Digest}},
		})
		if err != nil {
			return err
		}
		return remember(s.cfg.Store, plan.InspectKey(file.Blob.Digest), header)
	})
	if err != nil {
		return nil, err
	}
	return describe(header, staged), nil
}

// modelKey is the store's id of a model with one file.
func modelKey(file fetch.Result) string {
	return "model-" + keyDigest(string(file.Blob.Digest)+" "+file.Name)
}

func keyDigest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:20])
}

func readHeader(blob store.Blob) (model.Info, error) {
	file, err := os.Open(blob.Path)
	if err != nil {
		return model.Info{}, storageError("open the staged model", err)
	}
	defer func() { _ = file.Close() }()
	header, err := model.Read(file, blob.Size)
	if err != nil {
		return model.Info{}, err
	}
	if header.SplitCount > 1 {
		return model.Info{}, reason.New(reason.InvalidParams,
			fmt.Sprintf("the model file is part %d of %d", header.SplitNumber+1, header.SplitCount), reason.Field(plan.FieldModel),
			reason.Remedy("name a model that is one file"))
	}
	return header, nil
}

func describe(header model.Info, staged store.Model) *enginev1.PreparedModel {
	prepared := &enginev1.PreparedModel{
		Architecture:         header.Architecture,
		Quantization:         header.Quantization,
		TrainedContextTokens: uint32(min(max(header.ContextLength, 0), 1<<32-1)),
		Parameters:           uint64(max(header.Parameters, 0)),
		Memory: &enginev1.MemoryEstimate{
			WeightsBytes: header.Memory.WeightsBytes, KvBytesPerToken: header.Memory.KVBytesPerToken,
		},
	}
	for _, file := range staged.Files {
		prepared.Files = append(prepared.Files, &enginev1.ModelFile{
			Path: file.Path, Sha256: file.Digest.Hex(), SizeBytes: file.Size, Role: enginev1.ModelFileRole_MODEL_FILE_ROLE_WEIGHTS,
		})
	}
	return prepared
}
