// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// checker collects what is wrong with the fields of a policy, at most one thing of each.
type checker struct {
	names, problems, remedies []string
}

// between refuses a duration that is negative, shorter than least or longer than most, unless it is 0.
func (c *checker) between(name string, d, least, most time.Duration) {
	switch {
	case d == 0:
	case d < least:
		c.add(name, fmt.Sprintf("%s is too short", d), fmt.Sprintf("at least %s", max(least, 1)))
	case d > most:
		c.add(name, fmt.Sprintf("%s is too long", d), fmt.Sprintf("at most %s", most))
	}
}

// atLeast refuses a duration that is shorter than another one, if both are given.
func (c *checker) atLeast(name string, d time.Duration, otherName string, other time.Duration) {
	if d > 0 && d < other {
		c.add(name, fmt.Sprintf("%s is shorter than %s, which is %s", d, otherName, other), fmt.Sprintf("at least %s", other))
	}
}

func (c *checker) count(name string, n int) {
	if n < 0 || n > maxCount {
		c.add(name, fmt.Sprintf("%d is no such number", n), fmt.Sprintf("a number from 1 to %d", maxCount))
	}
}

func (c *checker) add(name, problem, remedy string) {
	if slices.Contains(c.names, name) {
		return
	}
	c.names, c.problems, c.remedies = append(c.names, name), append(c.problems, problem), append(c.remedies, remedy)
}

// err names every field: the only one with the error's own message, several each with its problem.
func (c *checker) err() error {
	switch len(c.names) {
	case 0:
		return nil
	case 1:
		return reason.New(reason.InvalidParams, c.problems[0], reason.Field(c.names[0]), reason.Remedy("give "+c.remedies[0]))
	}
	var options []reason.Option
	problems, remedies := make([]string, len(c.names)), make([]string, len(c.names))
	for i, name := range c.names {
		options = append(options, reason.Violation(name, c.problems[i]))
		problems[i] = name + ": " + c.problems[i]
		remedies[i] = name + ": " + c.remedies[i]
	}
	options = append(options, reason.Remedy("give for "+strings.Join(remedies, "; for ")))
	return reason.New(reason.InvalidParams, strings.Join(problems, "; "), options...)
}
