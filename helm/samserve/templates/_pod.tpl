{{- /* What a pod has besides its containers. */ -}}

{{- /* Draining, calls that end, and what closing takes; Triton ends after that. */ -}}
{{- define "samserve.terminationSeconds" -}}
{{- $triton := ternary 10 0 (eq (include "samserve.shape" .) "pod") -}}
{{- with .Values.shutdown -}}
{{- add .drainSeconds .graceSeconds 5 $triton -}}
{{- end -}}
{{- end -}}

{{- define "samserve.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Takes a list: values that say where pods run, and the labels of the pods. */ -}}
{{- define "samserve.placement" -}}
{{- $where := index . 0 -}}
{{- with $where.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $where.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $where.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $where.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $where.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $where.topologySpreadConstraints }}
  {{- toYaml $where.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- index . 1 | nindent 8 }}
{{- end }}
{{- end -}}

{{- /* Takes how pods are replaced.  Values of a rolling update are refused with another type. */ -}}
{{- define "samserve.strategy" -}}
type: {{ .type }}
{{- if and (eq .type "RollingUpdate") .rollingUpdate }}
rollingUpdate:
  {{- toYaml .rollingUpdate | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Time in which a new pod has to become ready: images, models, Triton. */ -}}
{{- define "samserve.progressSeconds" -}}
{{- $pull := ternary 3600 0 (eq .Values.models.source "pull") -}}
{{- add 600 $pull (ternary .Values.triton.startupSeconds 0 (eq .Values.engine "triton")) -}}
{{- end -}}

{{- /* Of containers that do next to nothing; quotas want to know. */ -}}
{{- define "samserve.smallResources" -}}
requests:
  cpu: 100m
  memory: 256Mi
limits:
  memory: 256Mi
{{- end -}}

{{- define "samserve.volumes" -}}
- name: config
  configMap:
    name: {{ include "samserve.fullname" . }}
{{- if .Values.auth.policy }}
- name: policy
  configMap:
    name: {{ include "samserve.fullname" . }}-policy
{{- end }}
{{- include "samserve.secretVolumes" . }}
{{- if include "samserve.sharesMemory" . }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ include "samserve.sharedBytes" . | quote }}
- name: triton-tmp
  emptyDir: {}
{{- end }}
- name: gateway-tmp
  emptyDir: {}
{{- if ne (include "samserve.shape" .) "split" }}
{{- include "samserve.modelsVolume" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What starts before the gateway: models, and Triton where it is in the same pod. */ -}}
{{- define "samserve.before" -}}
{{- if ne (include "samserve.shape" .) "split" }}
{{- include "samserve.modelsInit" . }}
{{- end }}
{{- if eq (include "samserve.shape" .) "pod" }}
{{ include "samserve.triton" . }}
{{- end }}
{{- end -}}
