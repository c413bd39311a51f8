// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Caps on a header. What is counted is also bounded by what the file can hold.
const (
	maxMetadata     = 1 << 16
	maxTensors      = 1 << 20
	maxNameBytes    = 1 << 16
	maxTextBytes    = 1 << 20
	maxArrayNesting = 3
	maxListLength   = 1 << 16
	maxAlignment    = 1 << 20
	maxDimensions   = 4

	defaultAlignment  = 32
	minMetadataBytes  = 8 + 4 + 1
	minTensorBytes    = 8 + 4 + 8 + 4 + 8
	firstVersion      = 2
	lastVersion       = 3
	magicLittleEndian = 0x46554747 // "GGUF"
)

// value is one kept metadata value: the field of its kind is set.
type value struct {
	text string
	num  int64
	list []int64
}

type tensor struct {
	name       string
	typ        uint32
	elements   int64
	offset     int64 // from the start of the data
	sizeBytes  int64
	dimensions []int64
}

type header struct {
	version  uint32
	metadata map[string]value
	tensors  []tensor
}

// readHeader reads metadata and tensor list, and checks that every tensor lies within the file.
func readHeader(file io.ReaderAt, sizeBytes int64) (*header, error) {
	c := newCursor(file, sizeBytes)
	magic := c.u32()
	version := c.u32()
	if reason.Of(c.err) == reason.StorageFailed {
		return nil, c.err
	}
	if c.err != nil || magic != magicLittleEndian {
		return nil, invalid("model file is not a GGUF: its first bytes are not \"GGUF\"")
	}
	if version < firstVersion || version > lastVersion {
		return nil, invalid("model file is a GGUF of version %d, known are %d to %d", version, firstVersion, lastVersion)
	}
	h := &header{version: version, metadata: map[string]value{}}
	tensors, metadata := c.count("tensors", maxTensors, minTensorBytes), c.count("metadata values", maxMetadata, minMetadataBytes)
	for i := int64(0); i < metadata && c.err == nil; i++ {
		h.readMetadata(c)
	}
	for i := int64(0); i < tensors && c.err == nil; i++ {
		h.readTensor(c)
	}
	if c.err != nil {
		return nil, c.err
	}
	return h, h.place(c.position, sizeBytes)
}

func (h *header) readMetadata(c *cursor) {
	key := c.text(maxNameBytes)
	typ := c.u32()
	if c.err != nil {
		return
	}
	if !wanted(key) {
		c.skipValue(typ, 0)
		return
	}
	h.metadata[key] = c.value(typ)
}

// wanted tells which metadata is kept. Vocabularies are the bulk of a header and are only counted.
func wanted(key string) bool {
	return !strings.HasPrefix(key, "tokenizer.") || key == keyTokens || key == keyChatTemplate
}

func (h *header) readTensor(c *cursor) {
	t := tensor{name: c.text(maxNameBytes), elements: 1}
	dimensions := c.u32()
	if c.err == nil && (dimensions == 0 || dimensions > maxDimensions) {
		c.fail(invalid("model file has a tensor %.100q of %d dimensions", t.name, dimensions))
	}
	for i := uint32(0); i < dimensions && c.err == nil; i++ {
		length := c.u64()
		high, low := bits.Mul64(uint64(t.elements), length)
		if length == 0 || high != 0 || low > math.MaxInt64/8 {
			c.fail(invalid("model file has a tensor %.100q of impossible size", t.name))
			return
		}
		t.elements = int64(low)
		t.dimensions = append(t.dimensions, int64(length))
	}
	t.typ = c.u32()
	offset := c.u64()
	if c.err == nil && offset > math.MaxInt64/2 {
		c.fail(invalid("model file has a tensor %.100q at an impossible offset", t.name))
	}
	if c.err != nil {
		return
	}
	t.offset = int64(offset)
	h.tensors = append(h.tensors, t)
}

// place gives every tensor its size. The size of a type that is not known here is the room up to the next tensor.
func (h *header) place(headerBytes, sizeBytes int64) error {
	alignment := int64(defaultAlignment)
	if v, ok := h.metadata[keyAlignment]; ok {
		alignment = v.num
	}
	if alignment <= 0 || alignment > maxAlignment || alignment&(alignment-1) != 0 {
		return invalid("model file has an alignment of %d bytes, which is no power of two", alignment)
	}
	start := (headerBytes + alignment - 1) / alignment * alignment
	slices.SortStableFunc(h.tensors, func(a, b tensor) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	types := tensorTypes()
	for i := range h.tensors {
		t := &h.tensors[i]
		layout, known := types[t.typ]
		switch {
		case known && t.dimensions[0]%layout.blockElements != 0:
			return invalid("model file has a tensor %.100q whose rows are no whole %s blocks", t.name, layout.name)
		case known:
			t.sizeBytes = t.elements / layout.blockElements * layout.blockBytes
		case i+1 < len(h.tensors):
			t.sizeBytes = h.tensors[i+1].offset - t.offset
		default:
			t.sizeBytes = max(sizeBytes-start-t.offset, 0)
		}
		if t.sizeBytes > math.MaxInt64/2-t.offset || start+t.offset+t.sizeBytes > sizeBytes || start+t.offset > sizeBytes {
			return truncated(start+t.offset+min(t.sizeBytes, math.MaxInt64/4), sizeBytes)
		}
	}
	return nil
}

// number returns an integer of the architecture's own metadata, or 0.
func (h *header) number(suffix string) int64 { return h.own(suffix).num }

func (h *header) own(suffix string) value {
	return h.metadata[h.metadata[keyArchitecture].text+"."+suffix]
}

// perLayer returns one number for each of layers, whether the file has one for all or a list.
func (h *header) perLayer(suffix string, layers int64) []int64 {
	v := h.own(suffix)
	numbers := make([]int64, min(max(layers, 0), maxListLength))
	for i := range numbers {
		switch {
		case i < len(v.list):
			numbers[i] = v.list[i]
		case len(v.list) == 0:
			numbers[i] = v.num
		}
	}
	return numbers
}

// typeName tells the quantization: what the file says, or its most used tensor type by bytes.
func (h *header) typeName() string {
	if v, ok := h.metadata[keyFileType]; ok {
		if name, known := fileTypes()[v.num]; known {
			return name
		}
	}
	used, most := map[uint32]int64{}, uint32(0)
	for _, t := range h.tensors {
		used[t.typ] += t.sizeBytes
		if used[t.typ] > used[most] {
			most = t.typ
		}
	}
	if len(used) == 0 {
		return ""
	}
	if layout, known := tensorTypes()[most]; known {
		return layout.name
	}
	return fmt.Sprintf("type %d", most)
}
