// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// endError is diskError for work that ctx may have cut: then the error is the cause that ctx gives.
func endError(ctx context.Context, attempt, path string, wanted int64, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s: %w", attempt, context.Cause(ctx))
	}
	return diskError(attempt, path, wanted, err)
}

// diskError types an error of a disk operation: DISK_FULL when there is no room or quota, else STORAGE_FAILED. wanted is
// how many bytes the caller was about to add, 0 when that is not known. Errors that are typed already or say
// absent keep their type.
func diskError(attempt, path string, wanted int64, err error) error {
	if err == nil {
		return nil
	}
	if _, typed := reason.As(err); typed || errors.Is(err, ErrAbsent) {
		return fmt.Errorf("%s: %w", attempt, err)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(attempt, path, wanted, err)
	}
	return reason.New(reason.StorageFailed, attempt, reason.Meta("path", path),
		reason.Remedy("check the permissions and the health of the file system that holds the store"), reason.Cause(err))
}

func diskFull(attempt, path string, wanted int64, cause error) error {
	options := []reason.Option{
		reason.Meta("path", path),
		reason.Remedy("free space on the file system that holds the store, or move the store"),
	}
	message := fmt.Sprintf("%s: no space left for %s", attempt, path)
	if wanted > 0 {
		message += fmt.Sprintf(" (%d bytes wanted)", wanted)
		options = append(options, reason.Meta("bytes_wanted", wanted))
	}
	if cause != nil {
		options = append(options, reason.Cause(cause))
	}
	return reason.New(reason.DiskFull, message, options...)
}

func unusableRoot(root string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull("open store", root, 0, err)
	}
	return reason.New(reason.StorageFailed, "store root "+root+" cannot be used",
		reason.Field("store.root"), reason.Meta("path", root),
		reason.Remedy("make the directory writable for the user of the provisioner, or configure another one"), reason.Cause(err))
}
