// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

const idName = "manager-id"

// identity is the content of the file that names the state directory.
type identity struct {
	ID string `json:"id"`
}

func (identity) kind() kind {
	return kind{name: "manager", oldest: schema, poolOf: func(string) string { return "" }}
}

func (identity) fileName() (string, error) { return idName, nil }

func (i identity) check() error {
	if !isFileName(i.ID) {
		return errors.New("no id")
	}
	return nil
}

// ManagerID is a random name of this state directory. It was made with the directory and is the same in every program that
// opens it, unless its file was damaged: then there is a new one, and Load tells of the old file.
func (s *Store) ManagerID() string { return s.id }

// identify reads the id, or makes one.
func (s *Store) identify() error {
	k := identity{}.kind()
	found, aside, err := load[identity](s, []string{idName})
	if err != nil {
		return err
	}
	s.aside = aside
	if len(found) == 1 {
		s.id = found[0].ID
		return nil
	}
	made := identity{ID: process.NewNonce()}
	name, text, err := encode(made)
	if err == nil {
		err = s.put(k, name, text)
	}
	s.id = made.ID
	return err
}
