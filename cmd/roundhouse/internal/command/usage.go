// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// usage is an error of the command line, which the parser found before command ran.
func usage(command *cobra.Command, err error) error {
	remedy := reason.Remedy(`see "` + command.CommandPath() + ` --help"`)
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		flag := invalid.GetFlag()
		return reason.New(reason.InvalidParams, strconv.Quote(invalid.GetValue())+" is not "+takes(flag.Value),
			reason.Field("--"+flag.Name), remedy)
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return reason.New(reason.InvalidParams, "needs a value", reason.Field("--"+missing.GetFlag().Name), remedy)
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := "--" + unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			name = "-" + unknown.GetSpecifiedName()
		}
		return reason.New(reason.InvalidParams, "unknown flag", reason.Field(name), remedy)
	}
	return reason.New(reason.InvalidParams, err.Error(), remedy)
}

// takes says what a flag takes.
func takes(value pflag.Value) string {
	switch value.Type() {
	case "uint32":
		return "a whole number from 0 to 4294967295"
	case "duration":
		return "a time such as 30s, 5m or 2h"
	case "bool":
		return "true or false"
	case (*render.Format)(nil).Type():
		return "text or json"
	default:
		return "a " + value.Type()
	}
}

// formatAsked is the output format that a command line asks for which cannot be parsed.
func formatAsked(args []string) render.Format {
	format := render.Text
	for i, arg := range args {
		value, isLong := strings.CutPrefix(arg, "--output")
		if !isLong {
			var isShort bool
			if value, isShort = strings.CutPrefix(arg, "-o"); !isShort {
				if arg == "--" {
					break
				}
				continue
			}
		}
		if value == "" && i+1 < len(args) {
			value = args[i+1]
		}
		_ = format.Set(strings.TrimPrefix(value, "=")) // one that is not known is a part of what is wrong
	}
	return format
}
