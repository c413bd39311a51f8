// SPDX-License-Identifier: Apache-2.0

package model

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// The types of metadata values.
const (
	typeU8 uint32 = iota
	typeI8
	typeU16
	typeI16
	typeU32
	typeI32
	typeF32
	typeBool
	typeString
	typeArray
	typeU64
	typeI64
	typeF64
)

const bufferBytes = 64 << 10

// cursor reads a file forward. After the first error every read returns zero and err stays.
type cursor struct {
	in       *bufio.Reader
	position int64
	size     int64
	err      error
}

func newCursor(file io.ReaderAt, sizeBytes int64) *cursor {
	return &cursor{in: bufio.NewReaderSize(io.NewSectionReader(file, 0, sizeBytes), bufferBytes), size: sizeBytes}
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// bytes reads n bytes, which the caller has bounded, into a new slice.
func (c *cursor) bytes(n int64) []byte {
	if !c.fits(n) {
		return nil
	}
	b := make([]byte, n)
	_, err := io.ReadFull(c.in, b)
	c.moved(n, err)
	return b
}

func (c *cursor) skip(n int64) {
	for n > 0 && c.fits(n) {
		step := min(n, math.MaxInt32)
		_, err := c.in.Discard(int(step))
		c.moved(step, err)
		n -= step
	}
}

func (c *cursor) fits(n int64) bool {
	if c.err == nil && (n < 0 || n > c.size-c.position) {
		c.fail(truncated(c.position+min(max(n, 0), math.MaxInt64/2), c.size))
	}
	return c.err == nil
}

func (c *cursor) moved(n int64, err error) {
	c.position += n
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		c.fail(truncated(c.position, c.size))
	case err != nil:
		c.fail(reason.New(reason.StorageFailed, "read model file", reason.Cause(err),
			reason.Remedy("check the health of the file system that holds the store")))
	}
}

func (c *cursor) u32() uint32 {
	if b := c.bytes(4); c.err == nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.bytes(8); c.err == nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// length reads a length in things of at least unitBytes each, so that no more are expected than the file can hold.
func (c *cursor) length(unitBytes int64) int64 {
	n := c.u64()
	if c.err == nil && n > uint64(c.size-c.position)/uint64(unitBytes) {
		c.fail(truncated(c.position+int64(min(n, math.MaxInt64/64))*min(unitBytes, 32), c.size))
	}
	if c.err != nil {
		return 0
	}
	return int64(n)
}

func (c *cursor) count(what string, limit, unitBytes int64) int64 {
	n := c.length(unitBytes)
	if n > limit {
		c.fail(invalid("model file has %d %s, allowed are %d", n, what, limit))
	}
	return n
}

func (c *cursor) text(limitBytes int64) string {
	n := c.length(1)
	if n > limitBytes {
		c.fail(invalid("model file has a name of %d bytes, allowed are %d", n, limitBytes))
	}
	return string(c.bytes(n))
}

// value reads a value of which numbers, short lists of numbers and text are kept; of other lists only the length, as num.
func (c *cursor) value(typ uint32) value {
	switch typ {
	case typeString:
		n := c.length(1)
		text := c.bytes(min(n, maxTextBytes))
		c.skip(n - int64(len(text)))
		return value{text: string(text)}
	case typeArray:
		element, n := c.u32(), c.length(1)
		width := numberBytes(element)
		if width == 0 || element == typeF32 || element == typeF64 || n > maxListLength {
			c.skipElements(element, n, 1)
			return value{num: n}
		}
		list := make([]int64, 0, min(n, c.size/width))
		for i := int64(0); i < n && c.err == nil; i++ {
			list = append(list, c.number(element))
		}
		return value{num: n, list: list}
	default:
		return value{num: c.number(typ)}
	}
}

// number reads an integer, saturated to int64; a floating-point number is read as 0.
func (c *cursor) number(typ uint32) int64 {
	width := numberBytes(typ)
	if width == 0 {
		c.fail(invalid("model file has a metadata value of unknown type %d", typ))
		return 0
	}
	b := c.bytes(width)
	if c.err != nil {
		return 0
	}
	switch typ {
	case typeU8, typeBool:
		return int64(b[0])
	case typeI8:
		return int64(int8(b[0]))
	case typeU16:
		return int64(binary.LittleEndian.Uint16(b))
	case typeI16:
		return int64(int16(binary.LittleEndian.Uint16(b)))
	case typeU32:
		return int64(binary.LittleEndian.Uint32(b))
	case typeI32:
		return int64(int32(binary.LittleEndian.Uint32(b)))
	case typeU64:
		return int64(min(binary.LittleEndian.Uint64(b), math.MaxInt64))
	case typeI64:
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
}

func (c *cursor) skipValue(typ uint32, nesting int) {
	switch {
	case typ == typeString:
		c.skip(c.length(1))
	case typ == typeArray:
		element := c.u32()
		c.skipElements(element, c.length(1), nesting+1)
	case numberBytes(typ) > 0:
		c.skip(numberBytes(typ))
	default:
		c.fail(invalid("model file has a metadata value of unknown type %d", typ))
	}
}

func (c *cursor) skipElements(typ uint32, n int64, nesting int) {
	if nesting > maxArrayNesting {
		c.fail(invalid("model file has lists within lists, more than %d deep", maxArrayNesting))
		return
	}
	if width := numberBytes(typ); width > 0 {
		if n > (c.size-c.position)/width {
			c.fail(truncated(c.position+n, c.size))
			return
		}
		c.skip(n * width)
		return
	}
	for i := int64(0); i < n && c.err == nil; i++ {
		c.skipValue(typ, nesting)
	}
}

// numberBytes is the width of a number type, 0 for every other type.
func numberBytes(typ uint32) int64 {
	switch typ {
	case typeU8, typeI8, typeBool:
		return 1
	case typeU16, typeI16:
		return 2
	case typeU32, typeI32, typeF32:
		return 4
	case typeU64, typeI64, typeF64:
		return 8
	}
	return 0
}
