// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"encoding/binary"
	"slices"
)

// Value types of GGUF.
const (
	ggufUint32 = 4
	ggufString = 8
)

// TinyGGUF is a valid model file of a few hundred bytes that no real engine would serve. Files of different names are
// different files.
func TinyGGUF(name string) []byte {
	out := []byte("GGUF")
	out = binary.LittleEndian.AppendUint32(out, 3)
	out = binary.LittleEndian.AppendUint64(out, 1) // tensors
	out = binary.LittleEndian.AppendUint64(out, 7) // values
	out = appendText(appendKey(out, "general.architecture", ggufString), "llama")
	out = appendText(appendKey(out, "general.name", ggufString), name)
	for _, field := range []struct {
		key   string
		value uint32
	}{
		{"llama.context_length", 2048},
		{"llama.block_count", 1},
		{"llama.embedding_length", 32},
		{"llama.attention.head_count", 4},
		{"general.file_type", 0},
	} {
		out = binary.LittleEndian.AppendUint32(appendKey(out, field.key, ggufUint32), field.value)
	}
	out = appendText(out, "token_embd.weight")
	out = binary.LittleEndian.AppendUint32(out, 1)  // dimensions
	out = binary.LittleEndian.AppendUint64(out, 32) // their size
	out = binary.LittleEndian.AppendUint32(out, 0)  // 32 bits a value
	out = binary.LittleEndian.AppendUint64(out, 0)  // where the data begins
	padding := (32 - len(out)%32) % 32
	return slices.Concat(out, make([]byte, padding+32*4))
}

func appendKey(out []byte, key string, kind uint32) []byte {
	return binary.LittleEndian.AppendUint32(appendText(out, key), kind)
}

func appendText(out []byte, text string) []byte {
	return append(binary.LittleEndian.AppendUint64(out, uint64(len(text))), text...)
}
