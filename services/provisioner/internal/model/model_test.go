// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/model"
)

// The numbers of the value types that the tests write.
const (
	u8     = 0
	u32    = 4
	i32    = 5
	f32    = 6
	text   = 8
	list   = 9
	u64    = 10
	f32Typ = 0
	q41Typ = 3
)

// writer makes GGUF files piece by piece.
type writer struct{ bytes.Buffer }

func (w *writer) put(values ...any) *writer {
	for _, v := range values {
		if s, ok := v.(string); ok {
			w.put(uint64(len(s)))
			w.WriteString(s)
			continue
		}
		if err := binary.Write(&w.Buffer, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return w
}

func (w *writer) start(version uint32, tensors, metadata uint64) *writer {
	w.WriteString("GGUF")
	return w.put(version, tensors, metadata)
}

// data pads the header and adds n bytes of tensor data.
func (w *writer) data(n int) []byte {
	for w.Len()%32 != 0 {
		w.WriteByte(0)
	}
	w.Write(make([]byte, n))
	return w.Bytes()
}

// small is a model of two layers with 2 KV heads of 4 heads, each of 8 values.
func small() []byte {
	var w writer
	w.start(3, 4, 14)
	w.put("general.architecture", uint32(text), "llama")
	w.put("general.name", uint32(text), "Tiny")
	w.put("general.file_type", uint32(u32), uint32(3))
	w.put("llama.context_length", uint32(u32), uint32(2048))
	w.put("llama.block_count", uint32(u32), uint32(2))
	w.put("llama.embedding_length", uint32(u64), uint64(32))
	w.put("llama.attention.head_count", uint32(u32), uint32(4))
	w.put("llama.attention.head_count_kv", uint32(list), uint32(i32), uint64(2), int32(2), int32(1))
	w.put("llama.rope.freq_base", uint32(f32), float32(10000))
	w.put("tokenizer.ggml.tokens", uint32(list), uint32(text), uint64(3), "a", "b", "c")
	w.put("tokenizer.ggml.scores", uint32(list), uint32(f32), uint64(3), float32(1), float32(2), float32(3))
	w.put("tokenizer.chat_template", uint32(text), "{{ messages }}")
	w.put("some.nested", uint32(list), uint32(list), uint64(2), uint32(u8), uint64(1), uint8(1), uint32(text), uint64(1), "x")
	w.put("split.count", uint32(u32), uint32(1))
	w.put("token_embd.weight", uint32(2), uint64(32), uint64(3), uint32(q41Typ), uint64(0))      // 60 bytes
	w.put("blk.0.attn_q.weight", uint32(2), uint64(32), uint64(32), uint32(q41Typ), uint64(64))  // 640 bytes
	w.put("blk.1.attn_q.weight", uint32(2), uint64(32), uint64(32), uint32(q41Typ), uint64(704)) // 640 bytes
	w.put("output_norm.weight", uint32(1), uint64(32), uint32(f32Typ), uint64(1344))             // 128 bytes
	return w.data(1344 + 128)
}

func read(data []byte) (model.Info, error) {
	return model.Read(bytes.NewReader(data), int64(len(data)))
}

func TestRead(t *testing.T) {
	t.Parallel()
	got, err := read(small())
	if err != nil {
		t.Fatal(err)
	}
	want := model.Info{
		Format: "gguf", Version: 3, Architecture: "llama", Name: "Tiny", Quantization: "Q4_1", ContextLength: 2048, Layers: 2, Embedding: 32,
		Heads: 4, KVHeads: 2, VocabTokens: 3, Parameters: 96 + 1024 + 1024 + 32, Tensors: 4, SplitCount: 1, ChatTemplate: model.ChatTemplatePresent,
		Memory: model.Memory{
			WeightsBytes: 60 + 640 + 640 + 128, LayerBytes: []int64{640, 640}, HostBytes: 60, OutputBytes: 128,
			KVBytesPerToken: (2 + 1) * (8 + 8) * 2,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

func TestEveryCutIsNoticed(t *testing.T) {
	t.Parallel()
	whole := small()
	for size := range whole {
		_, err := read(whole[:size])
		failed, ok := reason.As(err)
		if !ok || failed.Reason != reason.InvalidParams || failed.Remedy == "" {
			t.Fatalf("the first %d of %d bytes gave %v", size, len(whole), err)
		}
		if size >= 24 && !strings.Contains(failed.Message, "truncated") {
			t.Fatalf("the first %d of %d bytes gave %q, want truncated", size, len(whole), failed.Message)
		}
	}
}

func TestUnknownTensorTypeTakesTheRoomThereIs(t *testing.T) {
	t.Parallel()
	var w writer
	w.start(3, 2, 1).put("general.architecture", uint32(text), "llama")
	w.put("b", uint32(1), uint64(32), uint32(f32Typ), uint64(96))
	w.put("a", uint32(1), uint64(64), uint32(999), uint64(0))
	got, err := read(w.data(96 + 128))
	if err != nil {
		t.Fatal(err)
	}
	if got.Memory.WeightsBytes != 96+128 || got.ChatTemplate != model.ChatTemplateAbsent {
		t.Errorf("weights take %d bytes, want 224; template %v", got.Memory.WeightsBytes, got.ChatTemplate)
	}
}

func TestShardWithoutArchitecture(t *testing.T) {
	t.Parallel()
	var w writer
	w.start(3, 1, 2).put("split.no", uint32(2), uint16(1)).put("split.count", uint32(2), uint16(3))
	w.put("blk.7.a", uint32(1), uint64(32), uint32(f32Typ), uint64(0))
	got, err := read(w.data(128))
	if err != nil || got.SplitNumber != 1 || got.SplitCount != 3 || got.Memory.WeightsBytes != 128 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	const huge = math.MaxUint64
	tensor := func(values ...any) []byte {
		var w writer
		return w.start(3, 1, 0).put("t").put(values...).data(64)
	}
	metadata := func(values ...any) []byte {
		var w writer
		return w.start(3, 0, 1).put("k").put(values...).data(64)
	}
	alignment := func(n uint32) []byte {
		var w writer
		return w.start(3, 0, 1).put("general.alignment", uint32(u32), n).data(64)
	}
	for _, test := range []struct {
		name string
		data []byte
		want string // in the message
	}{
		{name: "empty", want: "not a GGUF"},
		{name: "text", data: []byte("<html>not found</html>"), want: "not a GGUF"},
		{name: "version 1", data: new(writer).start(1, 0, 0).Bytes(), want: "version 1"},
		{name: "version 4", data: new(writer).start(4, 0, 0).Bytes(), want: "version 4"},
		{name: "big-endian", data: new(writer).start(3<<24, 0, 0).Bytes(), want: "version"},
		{name: "too many tensors", data: new(writer).start(3, huge, 0).data(64), want: "truncated"},
		{name: "too many values", data: new(writer).start(3, 0, huge).data(64), want: "truncated"},
		{name: "more values than allowed", data: new(writer).start(3, 0, 1<<17).data(2 << 20), want: "metadata values"},
		{name: "endless key", data: new(writer).start(3, 0, 1).put(uint64(huge)).data(64), want: "truncated"},
		{name: "long key", data: new(writer).start(3, 0, 1).put(uint64(1 << 17)).data(1 << 18), want: "name of 131072"},
		{name: "endless text", data: metadata(uint32(text), uint64(huge)), want: "truncated"},
		{name: "endless list", data: metadata(uint32(list), uint32(u64), uint64(huge)), want: "truncated"},
		{name: "long list", data: metadata(uint32(list), uint32(u64), uint64(60)), want: "truncated"},
		{name: "lists in lists", data: metadata(uint32(list), uint32(list), uint64(1), uint32(list), uint64(1), uint32(list), uint64(1), uint32(list), uint64(1), uint32(u8), uint64(1)), want: "lists within lists"},
		{name: "unknown value type", data: metadata(uint32(77)), want: "unknown type 77"},
		{name: "unknown list type", data: metadata(uint32(list), uint32(77), uint64(1)), want: "unknown type 77"},
		{name: "no dimensions", data: tensor(uint32(0)), want: "0 dimensions"},
		{name: "many dimensions", data: tensor(uint32(1 << 30)), want: "dimensions"},
		{name: "overflowing size", data: tensor(uint32(2), uint64(1<<40), uint64(1<<40), uint32(f32Typ), uint64(0)), want: "impossible size"},
		{name: "empty row", data: tensor(uint32(1), uint64(0), uint32(f32Typ), uint64(0)), want: "impossible size"},
		{name: "large tensor", data: tensor(uint32(1), uint64(1<<40), uint32(f32Typ), uint64(0)), want: "truncated"},
		{name: "far tensor", data: tensor(uint32(1), uint64(1), uint32(f32Typ), uint64(1<<61)), want: "truncated"},
		{name: "impossible offset", data: tensor(uint32(1), uint64(1), uint32(f32Typ), uint64(huge)), want: "impossible offset"},
		{name: "far tensor of unknown type", data: tensor(uint32(1), uint64(1), uint32(999), uint64(1<<61)), want: "truncated"},
		{name: "half blocks", data: tensor(uint32(1), uint64(31), uint32(q41Typ), uint64(0)), want: "whole Q4_1 blocks"},
		{name: "no alignment", data: alignment(0), want: "alignment"},
		{name: "odd alignment", data: alignment(24), want: "alignment"},
		{name: "huge alignment", data: alignment(1 << 31), want: "alignment"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := read(test.data)
			failed, ok := reason.As(err)
			if !ok || failed.Reason != reason.InvalidParams || !strings.Contains(failed.Message, test.want) {
				t.Errorf("got %v, want INVALID_PARAMS with %q", err, test.want)
			}
		})
	}
}

// brokenFile cannot be read.
type brokenFile struct{}

var errBroken = errors.New("input/output error")

func (brokenFile) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestUnreadableFileIsNotCalledBad(t *testing.T) {
	t.Parallel()
	if _, err := model.Read(brokenFile{}, 1000); reason.Of(err) != reason.StorageFailed || !errors.Is(err, errBroken) {
		t.Errorf("got %v, want STORAGE_FAILED", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(small())
	f.Add(new(writer).start(3, 1, 0).put("t", uint32(1), uint64(32), uint32(999), uint64(0)).data(32))
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := read(data)
		if err != nil && reason.Of(err) != reason.InvalidParams {
			t.Errorf("got %v", err)
		}
		if m := info.Memory; info.Parameters < 0 || m.WeightsBytes < 0 || m.KVBytesPerToken < 0 || m.HostBytes < 0 || m.OutputBytes < 0 {
			t.Errorf("negative numbers: %+v", info)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	data := small()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := read(data); err != nil {
			b.Fatal(err)
		}
	}
}
