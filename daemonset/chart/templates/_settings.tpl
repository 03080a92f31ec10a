{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* The agent's settings: environment variables of docs/SETTINGS.md. */ -}}
{{- define "waylay.settings" -}}
{{- $owned := and .chained .istioOwnedCNIConfig -}}
AGENT_DEADLINE_SECONDS: {{ int .agentDeadlineSeconds | quote }}
CHAINED_CNI_PLUGIN: {{ .chained | quote }}
{{- with .cniConfFileName }}
CNI_CONF_NAME: {{ . | quote }}
{{- end }}
EXCLUDE_NAMESPACES: {{ join "," .excludeNamespaces | quote }}
{{- with include "waylay.selector" .excludeNamespaceSelector }}
EXCLUDE_NAMESPACE_SELECTOR: {{ . | quote }}
{{- end }}
{{- with include "waylay.selector" .excludePodSelector }}
EXCLUDE_POD_SELECTOR: {{ . | quote }}
{{- end }}
IPV6_POLICY: {{ .ipv6Policy | quote }}
ISTIO_OWNED_CNI_CONFIG: {{ $owned | quote }}
{{- if and $owned .istioOwnedCNIConfigFileName }}
ISTIO_OWNED_CNI_CONFIG_FILENAME: {{ .istioOwnedCNIConfigFileName | quote }}
{{- end }}
MODE: {{ .mode | quote }}
{{- with .podManifestDir }}
POD_MANIFEST_DIR: {{ . | quote }}
{{- end }}
RUNTIME_CLASSES: {{ join "," .runtimeClassBypass.classes | quote }}
RUNTIME_CLASS_POLICY: {{ .runtimeClassBypass.policy | quote }}
{{- /* One second of the grace period is for acting on the answer. */}}
STOP_DECISION_SECONDS: {{ max 0 (min .stopDecisionSeconds (sub .terminationGracePeriodSeconds 1)) | quote }}
{{- end -}}

{{- /* JSON of a label selector; nothing for one that would select everything. */ -}}
{{- define "waylay.selector" -}}
{{- if or .matchLabels .matchExpressions -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{- /* Flags, for what has no variable. */ -}}
{{- define "waylay.arguments" -}}
{{- $arguments := list -}}
{{- with coalesce .logging.level .global.logging.level -}}
{{- $arguments = append $arguments (printf "--log_output_level=%s" .) -}}
{{- end -}}
{{- if .global.logAsJson -}}
{{- $arguments = append $arguments "--log_as_json" -}}
{{- end -}}
{{- toYaml $arguments -}}
{{- end -}}

{{- /* Environment of the container: what only the node knows, and the user's, which win over everything. */ -}}
{{- define "waylay.env" -}}
{{- $env := .env -}}
{{- range $name, $path := dict "NODE_NAME" "spec.nodeName" "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" }}
{{- if not (hasKey $env $name) }}
- name: {{ $name }}
  valueFrom:
    fieldRef:
      fieldPath: {{ $path }}
{{- end }}
{{- end }}
{{- range $name, $value := $env }}
- name: {{ $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}
