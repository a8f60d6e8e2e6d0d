{{- /* Parts of the pod spec other than the containers. */ -}}

{{- /* Drain delay, grace period, 5 s to close; then 10 s for the Triton sidecar. */ -}}
{{- define "samserve.terminationGracePeriodSeconds" -}}
{{- $triton := ternary 10 0 (eq (include "samserve.topology" .) "pod") -}}
{{- with .Values.shutdown -}}
{{- add .drainDelaySeconds .gracePeriodSeconds 5 $triton -}}
{{- end -}}
{{- end -}}

{{- define "samserve.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Argument: a list of the scheduling values and the selector labels of the pods. */ -}}
{{- define "samserve.scheduling" -}}
{{- $scheduling := index . 0 -}}
{{- with $scheduling.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $scheduling.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $scheduling.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $scheduling.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $scheduling.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $scheduling.topologySpreadConstraints }}
  {{- toYaml $scheduling.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- index . 1 | nindent 8 }}
{{- end }}
{{- end -}}

{{- /* Argument: an update strategy. The API server rejects `rollingUpdate` with another type. */ -}}
{{- define "samserve.strategy" -}}
type: {{ .type }}
{{- if and (eq .type "RollingUpdate") .rollingUpdate }}
rollingUpdate:
  {{- toYaml .rollingUpdate | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Time in which a new pod must become ready: image pulls, models, start of Triton. */ -}}
{{- define "samserve.progressDeadlineSeconds" -}}
{{- $pull := ternary 3600 0 (eq .Values.models.source "pull") -}}
{{- add 600 $pull (ternary .Values.triton.startupTimeoutSeconds 0 (eq .Values.engine "triton")) -}}
{{- end -}}

{{- /* For containers that need little; a ResourceQuota may require requests and limits. */ -}}
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
{{- if include "samserve.usesSharedMemory" . }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ include "samserve.sharedMemoryBytes" . | quote }}
- name: triton-tmp
  emptyDir: {}
{{- end }}
- name: gateway-tmp
  emptyDir: {}
{{- if ne (include "samserve.topology" .) "split" }}
{{- include "samserve.modelsVolume" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Init containers of the gateway pod: the models, then the Triton sidecar. */ -}}
{{- define "samserve.initContainers" -}}
{{- if ne (include "samserve.topology" .) "split" }}
{{- include "samserve.modelsInitContainers" . }}
{{- end }}
{{- if eq (include "samserve.topology" .) "pod" }}
{{ include "samserve.triton" . }}
{{- end }}
{{- end -}}
