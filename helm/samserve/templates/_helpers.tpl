{{- /* Names and labels.  Names of templates are global, hence their prefix. */ -}}

{{- define "samserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough for the longest suffix, and for Deployments not to shorten their pods' names. */ -}}
{{- define "samserve.fullname" -}}
{{- $release := .Release.Name -}}
{{- $name := include "samserve.name" . -}}
{{- $both := ternary $release (printf "%s-%s" $release $name) (contains $name $release) -}}
{{- default $both .Values.fullnameOverride | trunc 37 | trimSuffix "-" -}}
{{- end -}}

{{- define "samserve.releaseLabels" -}}
app.kubernetes.io/name: {{ include "samserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "samserve.selectorLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- /* Of Triton's own pods, where it has some. */ -}}
{{- define "samserve.tritonLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: triton
{{- end -}}

{{- /* Who runs the models where: `pod`, `split` or `onnx`. */ -}}
{{- define "samserve.shape" -}}
{{- ternary .Values.topology "onnx" (eq .Values.engine "triton") -}}
{{- end -}}

{{- /* Of the pod of `helm test`, which is nobody's replica. */ -}}
{{- define "samserve.testLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "samserve.labels" -}}
{{ include "samserve.selectorLabels" . }}
{{ include "samserve.furtherLabels" . }}
{{- end -}}

{{- define "samserve.furtherLabels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: samserve
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "samserve.serviceAccountName" -}}
{{- $made := include "samserve.fullname" . -}}
{{- default (ternary $made "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* Takes a list: the image's values, and the tag for want of one. */ -}}
{{- define "samserve.image" -}}
{{- $image := index . 0 -}}
{{- $tag := default (index . 1) $image.tag -}}
{{- $image.repository -}}{{- ternary (printf "@%s" $image.digest) (printf ":%s" $tag) (ne $image.digest "") -}}
{{- end -}}

{{- /* Takes a quantity like 3Gi; values.schema.json admits no other form. */ -}}
{{- define "samserve.bytes" -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- mul (int64 $number) (get $units (trimPrefix $number .)) -}}
{{- end -}}

{{- /* Whether an autoscaler owns the number of gateways. */ -}}
{{- define "samserve.autoscaled" -}}
{{- with .Values.autoscaling -}}
{{- if or .hpa.enabled (and .keda.enabled (ne (include "samserve.shape" $) "split")) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What KEDA scales: the pods that Triton is in. */ -}}
{{- define "samserve.kedaTarget" -}}
{{- include "samserve.fullname" . -}}{{- if eq (include "samserve.shape" .) "split" -}}-triton{{- end -}}
{{- end -}}

{{- /* Gateways there are at least, and at most. */ -}}
{{- define "samserve.minPods" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicas (eq (include "samserve.autoscaled" .) "true") -}}
{{- end -}}

{{- define "samserve.maxPods" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas (eq (include "samserve.autoscaled" .) "true") -}}
{{- end -}}

{{- /* Most pods that hold models. */ -}}
{{- define "samserve.modelPods" -}}
{{- if eq (include "samserve.shape" .) "split" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.triton.split.replicas .Values.autoscaling.keda.enabled -}}
{{- else -}}
{{- include "samserve.maxPods" . -}}
{{- end -}}
{{- end -}}

{{- /* Each node's port, once. */ -}}
{{- define "samserve.cachePorts" -}}
{{- $ports := list -}}
{{- range .Values.cache.nodes -}}
{{- $ports = append $ports (regexFind "[0-9]+$" .) -}}
{{- end -}}
{{- $ports | uniq | join "," -}}
{{- end -}}
