{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* The image's reference. Our chart with Istio's image would be neither: it lacks the privileges that that one needs. */ -}}
{{- define "waylay.image" -}}
{{- $v := .values -}}
{{- $image := $v.image -}}
{{- if not (contains "/" $image) -}}
{{- $tag := coalesce $v.tag $v.global.tag .root.Chart.AppVersion -}}
{{- $image = printf "%s/%s:%s" (coalesce $v.hub $v.global.hub) $image $tag -}}
{{- with coalesce $v.variant $v.global.variant -}}
{{- $image = printf "%s-%s" $image . -}}
{{- end -}}
{{- end -}}
{{- if regexMatch `^((index\.|registry-1\.)?docker\.io/)?istio/|^gcr\.io/istio-(release|testing)/|^registry\.istio\.io/` $image -}}
{{- fail (printf "image: %s is Istio's own and does not work with this chart; take image, hub, tag and variant out of the values" $image) -}}
{{- end -}}
{{- $image -}}
{{- end -}}

{{- /* How a new release comes to the nodes. Kubernetes refuses a surge beside a gap, and knows no surge before 1.22. */ -}}
{{- define "waylay.updateStrategy" -}}
{{- $v := .values -}}
{{- $version := .root.Capabilities.KubeVersion.Version -}}
{{- $known := semverCompare ">=1.22.0-0" $version -}}
{{- $type := $v.updateStrategy.type | default "RollingUpdate" -}}
{{- $rolling := $v.updateStrategy.rollingUpdate | default dict -}}
{{- $none := list "" "0" "0%" -}}
{{- $gap := toString (hasKey $rolling "maxUnavailable" | ternary $rolling.maxUnavailable (hasKey $v "rollingMaxUnavailable" | ternary $v.rollingMaxUnavailable "")) -}}
{{- $surge := toString (hasKey $rolling "maxSurge" | ternary $rolling.maxSurge "") -}}
{{- if and (not (has $surge $none)) (not (has $gap $none)) -}}
{{- fail "updateStrategy.rollingUpdate: maxSurge and maxUnavailable cannot both be above 0; give one of them" -}}
{{- end -}}
{{- if and (not $known) (or (not (has $surge $none)) (and $gap (has $gap $none))) -}}
{{- fail (printf "updateStrategy.rollingUpdate: this needs maxSurge, which Kubernetes %s does not know (1.22 does); leave it out" $version) -}}
{{- end -}}
{{- if and (has $surge $none) (has $gap $none) -}}
{{- if and $known (not $surge) -}}{{- $surge = "1" -}}{{- else -}}{{- $gap = "1" -}}{{- end -}}
{{- end -}}
type: {{ $type }}
{{- if eq $type "RollingUpdate" }}
rollingUpdate:
  {{- if not (has $surge $none) }}
  maxSurge: {{ $surge }}
  maxUnavailable: 0
  {{- else }}
  maxUnavailable: {{ $gap }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* A namespace that is known to refuse the pods, where a cluster is asked: else no pod appears, without a word. */ -}}
{{- define "waylay.podSecurity" -}}
{{- with lookup "v1" "Namespace" "" .Release.Namespace -}}
{{- $level := dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "privileged" . -}}
{{- if ne $level "privileged" -}}
{{- fail (printf "namespace %s: Pod Security level %q refuses host paths and NET_ADMIN; run: kubectl label --overwrite namespace %[1]s pod-security.kubernetes.io/enforce=privileged" .metadata.name $level) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Labels of every object, and of the pods. */ -}}
{{- define "waylay.podLabels" -}}
app.kubernetes.io/name: istio-cni
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: istio
{{- end -}}

{{- /* Labels of every object: those by which others find what the existing chart makes, too. */ -}}
{{- define "waylay.labels" -}}
{{ include "waylay.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (replace "+" "_" .root.Chart.Version) }}
install.operator.istio.io/owning-resource: {{ .values.ownerName | default "unknown" | quote }}
istio.io/rev: {{ .values.revision | default "default" | quote }}
operator.istio.io/component: Cni
release: {{ .root.Release.Name }}
{{- end -}}
