// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	digestPrefix = "sha256:"
	hexLength    = 64
)

// Digest names content: "sha256:" and 64 lower-case hexadecimal digits. The empty Digest means "not known".
type Digest string

// ParseDigest accepts a sha256 with or without its "sha256:" prefix, in either case. Anything else is INVALID_PARAMS.
func ParseDigest(text string) (Digest, error) {
	digits := strings.ToLower(strings.TrimSpace(text))
	digits = strings.TrimPrefix(digits, digestPrefix)
	if _, err := hex.DecodeString(digits); err != nil || len(digits) != hexLength {
		return "", reason.New(reason.InvalidParams, fmt.Sprintf("%.100q is not a sha256 digest", text),
			reason.Remedy("give the 64 hexadecimal digits that sha256sum prints"))
	}
	return Digest(digestPrefix + digits), nil
}

// Hex returns the 64 digits without the prefix, and "" for the empty Digest.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// valid tells whether d can be used in a path.
func (d Digest) valid() bool {
	parsed, err := ParseDigest(string(d))
	return err == nil && parsed == d
}

// digestOf returns the digest of what was written to h, which must be a sha256.
func digestOf(h hash.Hash) Digest {
	return Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}
