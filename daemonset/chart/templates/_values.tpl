{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* All values in effect, as JSON: the defaults, then the platform's, then the user's, then the user's below `cni`. */ -}}
{{- define "waylay.values" -}}
{{- if hasKey .Values "defaults" -}}
{{- fail "defaults: give the values themselves, at the top level or below cni" -}}
{{- end -}}
{{- $given := include "waylay.pruned" (omit .Values "_internal_defaults_do_not_set" "cni") | fromJson -}}
{{- $given = mustMergeOverwrite $given (include "waylay.pruned" (.Values.cni | default dict) | fromJson) -}}
{{- $values := deepCopy (index .Values "_internal_defaults_do_not_set") -}}
{{- /* Our memory limit may be below what somebody requests. */ -}}
{{- if $given.resources -}}
{{- $_ := set $values "resources" (omit $values.resources "limits") -}}
{{- end -}}
{{- $platform := include "waylay.platform" $given -}}
{{- with $platform -}}
{{- $values = mustMergeOverwrite $values ($.Files.Get (printf "files/platform-%s.yaml" .) | fromYaml) -}}
{{- end -}}
{{- $values = mustMergeOverwrite $values $given (dict "platform" $platform) -}}
{{- if or (dig "ambient" "enabled" false $values) (hasSuffix "ambient" (coalesce $values.profile $values.global.profile | default "")) -}}
{{- fail "ambient.enabled: ambient mode is not served yet, and an agent that is asked for it stays not ready; leave it off" -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{- /* Without what is null: to give null is to give nothing. */ -}}
{{- define "waylay.pruned" -}}
{{- $kept := dict -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $kept $key (include "waylay.pruned" $value | fromJson) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $kept $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $kept -}}
{{- end -}}

{{- /* The name of the platform's preset; the profile openshift is how older charts name that platform. */ -}}
{{- define "waylay.platform" -}}
{{- $global := .global | default dict -}}
{{- $profile := coalesce .profile $global.profile | default "" -}}
{{- coalesce .platform $global.platform (eq $profile "openshift" | ternary "openshift" "") -}}
{{- end -}}

{{- /* Whether objects of `kind` ("cluster" or "namespace") are wanted: "true" or nothing. */ -}}
{{- define "waylay.scope" -}}
{{- if has .values.global.resourceScope (list "all" .kind) -}}true{{- end -}}
{{- end -}}
