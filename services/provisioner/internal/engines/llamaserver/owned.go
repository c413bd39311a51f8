// SPDX-License-Identifier: Apache-2.0

package llamaserver

import "github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"

// What a spec is to use in place of a flag that it must not set.
const (
	addressRemedy  = "leave it out: the address is chosen when the engine is started"
	modelRemedy    = "name the model in spec.model"
	filesRemedy    = "leave it out: a spec has one model file, and an engine reads no other"
	networkRemedy  = "leave it out: an engine fetches nothing, and everything it serves comes from spec.model"
	contextRemedy  = "use spec.launch.context_tokens, which is the context of one slot"
	slotsRemedy    = "use spec.launch.slots"
	contractRemedy = "leave it out: readiness, identity and activity of the engine are read there"
	accessRemedy   = "leave it out: engines listen on loopback only and have no keys of their own"
	agentRemedy    = "leave it out: it would give clients of the engine files and programs of this machine"
	routerRemedy   = "leave it out: one engine serves one model"
	logRemedy      = "leave it out: the engine's output is kept and read by its runner"
	exitRemedy     = "leave it out: the engine would print something and end"
	inlineRemedy   = "give the text itself with the flag without -file: an engine reads no file but its model"
)

// Owned are the flags of llama-server that a spec must not set.
func Owned() []engines.OwnedFlag {
	return []engines.OwnedFlag{
		owned(addressRemedy, "--host", "--port", "--reuse-port"),
		owned(modelRemedy, "-m", "--model", "-mu", "--model-url", "-dr", "--docker-repo", "-hf", "-hfr", "--hf-repo", "-hff",
			"--hf-file", "-hft", "--hf-token", "-hfv", "-hfrv", "--hf-repo-v", "-hffv", "--hf-file-v"),
		owned("use spec.model.id", "-a", "--alias", "--tags"),
		owned(filesRemedy, "-mm", "--mmproj", "-mmu", "--mmproj-url", "--mmproj-auto", "--no-mmproj", "--no-mmproj-auto",
			"--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "-md", "--model-draft", "--spec-draft-model",
			"-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf", "--mtp", "--dflash", "--eagle3", "-mv", "--model-vocoder",
			"-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic", "--slot-save-path", "--path",
			"--video-ffmpeg-dir", "--tts-speaker-file", "--image", "--audio", "--video"),
		owned(inlineRemedy, "--grammar-file", "-jf", "--json-schema-file", "--chat-template-file", "-f", "--file", "-bf",
			"--binary-file", "-sysf", "--system-prompt-file", "--ui-config-file", "--webui-config-file"),
		owned(networkRemedy, "--offline", "--embd-gemma-default", "--fim-qwen-1.5b-default", "--fim-qwen-3b-default",
			"--fim-qwen-7b-default", "--fim-qwen-7b-spec", "--fim-qwen-14b-spec", "--fim-qwen-30b-default",
			"--gpt-oss-20b-default", "--gpt-oss-120b-default", "--vision-gemma-4b-default", "--vision-gemma-12b-default",
			"--embd-bge-small-en-default", "--embd-e5-small-en-default", "--embd-gte-small-default", "--server-base"),
		owned(contextRemedy, "-c", "--ctx-size", "--kv-unified-per-slot", "-fit", "--fit", "-fitt", "--fit-target", "-fitc",
			"--fit-ctx", "-fitp", "--fit-print"),
		owned(slotsRemedy, "-np", "--parallel"),
		owned(contractRemedy, "--metrics", "--slots", "--no-slots", "--props", "--api-prefix", "--warmup", "--no-warmup",
			"--sleep-idle-seconds"),
		owned(accessRemedy, "--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"),
		owned(agentRemedy, "--tools", "--tools-runtime", "--mcp-servers-config", "--mcp-servers-json", "-ag", "--agent", "-no-ag",
			"--no-agent", "--media-path", "--ui-mcp-proxy", "--webui-mcp-proxy", "--no-ui-mcp-proxy", "--no-webui-mcp-proxy",
			"--rpc", "--ui", "--webui", "--no-ui", "--no-webui"),
		owned(routerRemedy, "--models-dir", "--models-preset", "--models-max", "--models-autoload", "--no-models-autoload"),
		owned(logRemedy, "--log-file", "--log-disable", "--log-jsonl", "--no-log-jsonl", "--log-prompts-dir", "--log-colors"),
		owned(exitRemedy, "-h", "--help", "--usage", "--version", "-cl", "--cache-list", "--completion-bash", "--list-devices"),
	}
}

func owned(remedy string, names ...string) engines.OwnedFlag {
	return engines.OwnedFlag{Names: names, Remedy: remedy}
}
