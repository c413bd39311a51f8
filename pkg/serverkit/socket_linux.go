// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// socketMode is the mode of every socket: its owner may connect.
const socketMode = 0o600

// socketListener is a Unix socket that takes its file away when it is closed, unless the file is another's by then.
type socketListener struct {
	*net.UnixListener
	path  string
	made  fs.FileInfo
	close func() error
}

// openSocket binds path. A missing folder is made with mode 0700. A socket that nobody answers on is replaced; one that
// somebody answers on, or a file that is no socket, is an error. The socket has mode 0600 at every moment.
//
// The folder is locked meanwhile, so that of two servers that find the same dead socket one wins and the other is told.
func openSocket(ctx context.Context, path string) (_ net.Listener, err error) {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := checkFolder(folder, os.Geteuid()); err != nil {
		return nil, err
	}
	unlock, err := lockFolder(folder)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// The kernel makes the file with the mode that the unbound socket has.
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var chmodErr error
		err := conn.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, chmodErr)
	}}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	socket, ok := listener.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listener is a %T", listener), listener.Close())
	}
	socket.SetUnlinkOnClose(false)
	l := &socketListener{UnixListener: socket, path: path}
	l.close = sync.OnceValue(l.closeAndRemove)
	if l.made, err = os.Lstat(path); err != nil {
		return nil, errors.Join(err, l.UnixListener.Close())
	}
	return l, nil
}

// checkFolder refuses a folder in which somebody else could put a socket of his own in place of ours: one that belongs to
// neither uid nor root, or that others may write to and that lacks the sticky bit.
func checkFolder(folder string, uid int) error {
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("owner of %s is not known", folder)
	}
	owned := int(stat.Uid) == uid || stat.Uid == 0
	shared := info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
	if owned && !shared {
		return nil
	}
	return reason.New(reason.UntrustedArtifact, fmt.Sprintf("others may replace sockets in %s (owner %d, mode %s)", folder, stat.Uid, info.Mode()),
		reason.Field(fieldListen), reason.Remedy("use a folder that belongs to you or root and that nobody else may write to"))
}

// Close stops listening and removes the socket's file. Repeating it changes nothing.
func (l *socketListener) Close() error { return l.close() }

func (l *socketListener) closeAndRemove() error {
	unlock, err := lockFolder(filepath.Dir(l.path))
	if err != nil {
		return errors.Join(l.UnixListener.Close(), ignoreMissing(err))
	}
	err = l.UnixListener.Close()
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.made) {
		err = errors.Join(err, ignoreMissing(os.Remove(l.path)))
	}
	return errors.Join(err, unlock())
}

// removeStale makes room at path if what is there is a socket of a process that is gone.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return ignoreMissing(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%s exists and is not a socket", path),
			reason.Field(fieldListen), reason.Remedy("remove it or choose another path"))
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return socketInUse(path, err)
	}
	return ignoreMissing(os.Remove(path))
}

func socketInUse(path string, cause error) error {
	return reason.New(reason.PortInUse, fmt.Sprintf("socket %s belongs to another process", path),
		reason.Field(fieldListen), reason.Remedy("stop that process or choose another path"), reason.Cause(cause))
}

// lockFolder waits for the lock of a folder and returns what gives it back. It is held for moments only.
func lockFolder(path string) (func() error, error) {
	folder, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), folder.Close())
	}
	return folder.Close, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
