// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"maps"

	"google.golang.org/protobuf/proto"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// differences names the fields in which two specs of a pool differ, as their proto does: those that need other engines, and
// those that do not.
func differences(a, b registry.Spec) (fresh, live []string) {
	differ := func(to *[]string, name string, different bool) {
		if different {
			*to = append(*to, name)
		}
	}
	if (a.Prepare == nil) != (b.Prepare == nil) {
		fresh = append(fresh, "workload")
	} else {
		engineA, engineB := a.Prepare.GetEngine(), b.Prepare.GetEngine()
		differ(&fresh, "prepare.engine", !proto.Equal(engineA, engineB))
		differ(&fresh, "prepare.model", !proto.Equal(a.Prepare.GetModel(), b.Prepare.GetModel()))
		differ(&fresh, "prepare.launch", !equalLaunch(a.Prepare.GetLaunch(), b.Prepare.GetLaunch()))
		differ(&fresh, "prepared_id", a.PreparedID != b.PreparedID)
	}
	differ(&fresh, "port", a.Port != b.Port)
	differ(&fresh, "replicas", a.Replicas != b.Replicas)
	differ(&live, "startup_timeout", a.StartupTimeout != b.StartupTimeout)
	differ(&live, "restart", a.Restart != b.Restart)
	differ(&live, "health", a.Health != b.Health)
	differ(&live, "residency", a.Residency != b.Residency)
	differ(&live, "idle_timeout", a.IdleTimeout != b.IdleTimeout)
	differ(&live, "priority", a.Priority != b.Priority)
	differ(&live, "labels", !maps.Equal(a.Labels, b.Labels))
	return fresh, live
}

// equalLaunch takes an absent one for one that says nothing.
func equalLaunch(a, b *enginev1.LaunchSpec) bool {
	if a == nil {
		a = &enginev1.LaunchSpec{}
	}
	if b == nil {
		b = &enginev1.LaunchSpec{}
	}
	return proto.Equal(a, b)
}
