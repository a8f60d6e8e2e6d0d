{{- /* Names, labels and replica counts. Template names are global, hence the prefix. */ -}}

{{- define "samserve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* 37 characters: leaves room for the longest suffix, and for pod names that are not truncated. */ -}}
{{- define "samserve.fullname" -}}
{{- $release := .Release.Name -}}
{{- $name := include "samserve.name" . -}}
{{- $default := ternary $release (printf "%s-%s" $release $name) (contains $name $release) -}}
{{- default $default .Values.fullnameOverride | trunc 37 | trimSuffix "-" -}}
{{- end -}}

{{- define "samserve.releaseLabels" -}}
app.kubernetes.io/name: {{ include "samserve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "samserve.selectorLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- /* Selector labels of the Triton pods of `topology: split`. */ -}}
{{- define "samserve.tritonLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: triton
{{- end -}}

{{- /* The headless Service, whose name stands for every gateway. */ -}}
{{- define "samserve.gatewayTarget" -}}
{{- printf "dns:///%s-headless.%s:50051" (include "samserve.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- /* `pod` or `split` with `engine: triton`, otherwise `onnx`. */ -}}
{{- define "samserve.topology" -}}
{{- ternary .Values.topology "onnx" (eq .Values.engine "triton") -}}
{{- end -}}

{{- /* Labels of the `helm test` pod, which Services and Deployments do not select. */ -}}
{{- define "samserve.testLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "samserve.labels" -}}
{{ include "samserve.selectorLabels" . }}
{{ include "samserve.commonLabels" . }}
{{- end -}}

{{- define "samserve.commonLabels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: samserve
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{- define "samserve.serviceAccountName" -}}
{{- $fullname := include "samserve.fullname" . -}}
{{- default (ternary $fullname "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- /* Argument: a list of the image's values and the default tag. */ -}}
{{- define "samserve.image" -}}
{{- $image := index . 0 -}}
{{- $tag := default (index . 1) $image.tag -}}
{{- $image.repository -}}{{- ternary (printf "@%s" $image.digest) (printf ":%s" $tag) (ne $image.digest "") -}}
{{- end -}}

{{- /* Converts a quantity such as 3Gi to bytes; values.schema.json allows no other format. */ -}}
{{- define "samserve.bytes" -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- mul (int64 $number) (get $units (trimPrefix $number .)) -}}
{{- end -}}

{{- /* `true` if an autoscaler sets the number of gateway pods, otherwise empty. */ -}}
{{- define "samserve.autoscaled" -}}
{{- with .Values.autoscaling -}}
{{- if or .hpa.enabled (and .keda.enabled (ne (include "samserve.topology" $) "split")) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The Deployment that KEDA scales: the one whose pods contain Triton. */ -}}
{{- define "samserve.kedaTarget" -}}
{{- include "samserve.fullname" . -}}{{- if eq (include "samserve.topology" .) "split" -}}-triton{{- end -}}
{{- end -}}

{{- /* Minimum and maximum number of gateway pods. */ -}}
{{- define "samserve.minReplicas" -}}
{{- ternary .Values.autoscaling.minReplicas .Values.replicas (eq (include "samserve.autoscaled" .) "true") -}}
{{- end -}}

{{- define "samserve.maxReplicas" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.replicas (eq (include "samserve.autoscaled" .) "true") -}}
{{- end -}}

{{- /* Maximum number of pods with a models volume. */ -}}
{{- define "samserve.maxModelPods" -}}
{{- if eq (include "samserve.topology" .) "split" -}}
{{- ternary .Values.autoscaling.maxReplicas .Values.triton.split.replicas .Values.autoscaling.keda.enabled -}}
{{- else -}}
{{- include "samserve.maxReplicas" . -}}
{{- end -}}
{{- end -}}

{{- /* The distinct ports of the shared cache's nodes, separated by commas. */ -}}
{{- define "samserve.cachePorts" -}}
{{- $ports := list -}}
{{- range .Values.cache.shared.nodes -}}
{{- $ports = append $ports (regexFind "[0-9]+$" .) -}}
{{- end -}}
{{- $ports | uniq | join "," -}}
{{- end -}}
