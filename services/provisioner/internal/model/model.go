// SPDX-License-Identifier: Apache-2.0

// Package model tells what a model file is from its header, without loading it.
//
// It reads the GGUF format, versions 2 and 3: metadata and the list of tensors, never their content. A header that lies
// about counts or lengths costs no more memory than a small multiple of what is really in the file. Nothing is cached,
// and all functions may be called at once.
package model

import (
	"fmt"
	"io"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Info describes one GGUF file. Numbers are zero where the file does not tell.
type Info struct {
	Format       string // always "gguf"
	Version      uint32
	Architecture string
	Name         string
	// Quantization is the name of the file type, such as "Q4_1", or that of the most used tensor type.
	Quantization  string
	ContextLength int64 // tokens the model was trained for
	Layers        int64
	Embedding     int64
	Heads         int64
	// KVHeads is the largest number of key-value heads in a layer.
	KVHeads      int64
	VocabTokens  int64
	Experts      int64
	Parameters   int64
	Tensors      int64
	SplitNumber  int64 // of this file, from 0
	SplitCount   int64 // files that make up the model; 0 or 1 means this one alone
	ChatTemplate ChatTemplate
	Memory       Memory
}

// ChatTemplate tells whether the model can be asked in chat form.
type ChatTemplate int

// Whether a chat template is in the file.
const (
	ChatTemplateUnspecified ChatTemplate = iota
	ChatTemplateAbsent
	ChatTemplatePresent
)

// Memory is an estimate of what serving the file takes. Compute buffers depend on the engine and are not in it.
type Memory struct {
	// WeightsBytes is the sum of all tensors.
	WeightsBytes int64
	// LayerBytes is the weights of each layer; HostBytes and OutputBytes are those of the token embedding and of all
	// that belongs to no layer.
	LayerBytes  []int64
	HostBytes   int64
	OutputBytes int64
	// KVBytesPerToken is for all layers at 16 bits a value; 0 when the header does not tell the head sizes. Models that
	// keep less than every token (sliding window, recurrent) take less.
	KVBytesPerToken int64
}

// Read reads the header of a GGUF file of sizeBytes. A file that is no GGUF, that is of another version, that ends before
// its tensors do, or whose header goes beyond the caps is an INVALID_PARAMS error that says which.
func Read(file io.ReaderAt, sizeBytes int64) (Info, error) {
	h, err := readHeader(file, sizeBytes)
	if err != nil {
		return Info{}, err
	}
	return h.info(), nil
}

func invalid(format string, args ...any) error {
	return reason.New(reason.InvalidParams, fmt.Sprintf(format, args...),
		reason.Remedy("give a GGUF file, and compare its sha256 with that of its publisher"))
}

func truncated(wantedBytes, sizeBytes int64) error {
	return reason.New(reason.InvalidParams, fmt.Sprintf("model file is truncated: it has %d bytes and needs %d", sizeBytes, wantedBytes),
		reason.Meta("size_bytes", sizeBytes), reason.Meta("needed_bytes", wantedBytes), reason.Remedy("fetch the file again"))
}
