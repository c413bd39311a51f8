// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// Metadata keys. Those of an architecture have its name and a dot before them.
const (
	keyArchitecture = "general.architecture"
	keyName         = "general.name"
	keyFileType     = "general.file_type"
	keyAlignment    = "general.alignment"
	keySplitNumber  = "split.no"
	keySplitCount   = "split.count"
	keyTokens       = "tokenizer.ggml.tokens"
	keyChatTemplate = "tokenizer.chat_template"

	ownContextLength = "context_length"
	ownLayers        = "block_count"
	ownEmbedding     = "embedding_length"
	ownExperts       = "expert_count"
	ownHeads         = "attention.head_count"
	ownKVHeads       = "attention.head_count_kv"
	ownKeyLength     = "attention.key_length"
	ownValueLength   = "attention.value_length"
)

const (
	layerPrefix     = "blk."
	embeddingPrefix = "token_embd."
	kvElementBytes  = 2
)

func (h *header) info() Info {
	info := Info{
		Format:        "gguf",
		Version:       h.version,
		Architecture:  h.metadata[keyArchitecture].text,
		Name:          h.metadata[keyName].text,
		Quantization:  h.typeName(),
		ContextLength: h.number(ownContextLength),
		Layers:        h.number(ownLayers),
		Embedding:     h.number(ownEmbedding),
		Experts:       h.number(ownExperts),
		VocabTokens:   h.metadata[keyTokens].num,
		Tensors:       int64(len(h.tensors)),
		SplitNumber:   h.metadata[keySplitNumber].num,
		SplitCount:    h.metadata[keySplitCount].num,
		ChatTemplate:  ChatTemplateAbsent,
		Memory:        h.memory(),
	}
	for _, t := range h.tensors {
		info.Parameters += min(t.elements, math.MaxInt64-info.Parameters)
	}
	heads, kvHeads := h.heads(info.Layers)
	if len(heads) > 0 {
		info.Heads, info.KVHeads = slices.Max(heads), slices.Max(kvHeads)
	}
	if h.metadata[keyChatTemplate].text != "" {
		info.ChatTemplate = ChatTemplatePresent
	}
	return info
}

// heads returns the attention and key-value heads of each layer; a file that has no key-value heads means as many.
func (h *header) heads(layers int64) (heads, kvHeads []int64) {
	heads = h.perLayer(ownHeads, layers)
	kvHeads = h.perLayer(ownKVHeads, layers)
	if _, ok := h.metadata[h.metadata[keyArchitecture].text+"."+ownKVHeads]; !ok {
		kvHeads = heads
	}
	return heads, kvHeads
}

func (h *header) memory() Memory {
	layers := h.number(ownLayers)
	m := Memory{LayerBytes: make([]int64, min(max(layers, 0), maxListLength))}
	for _, t := range h.tensors {
		m.WeightsBytes += t.sizeBytes
		switch layer, ok := layerOf(t.name); {
		case ok && layer < len(m.LayerBytes):
			m.LayerBytes[layer] += t.sizeBytes
		case strings.HasPrefix(t.name, embeddingPrefix):
			m.HostBytes += t.sizeBytes
		default:
			m.OutputBytes += t.sizeBytes
		}
	}
	heads, kvHeads := h.heads(layers)
	for i := range kvHeads {
		perHead := h.headLength(ownKeyLength, heads[i]) + h.headLength(ownValueLength, heads[i])
		m.KVBytesPerToken += clampProduct(kvHeads[i], perHead) * kvElementBytes
	}
	return m
}

// headLength is the values of one head: what the file says, or the embedding shared evenly among the heads.
func (h *header) headLength(suffix string, heads int64) int64 {
	if length := h.number(suffix); length > 0 {
		return length
	}
	if heads <= 0 {
		return 0
	}
	return h.number(ownEmbedding) / heads
}

// clampProduct multiplies two numbers of a header, which may be absurd, into something that sums up without overflow.
func clampProduct(a, b int64) int64 {
	const limit = 1 << 20
	return min(max(a, 0), limit) * min(max(b, 0), limit)
}

func layerOf(name string) (int, bool) {
	rest, ok := strings.CutPrefix(name, layerPrefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, ".")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0
}
