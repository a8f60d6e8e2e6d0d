{{- /* What a pod has besides its containers. */ -}}

{{- /* Draining, calls that end, and what closing takes; Triton ends after that. */ -}}
{{- define "samserve.terminationSeconds" -}}
{{- $triton := ternary 10 0 (eq (include "samserve.shape" .) "pod") -}}
{{- with .Values.shutdown -}}
{{- add .drainSeconds .graceSeconds 5 $triton -}}
{{- end -}}
{{- end -}}

{{- define "samserve.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Takes a list: the chart, and the labels of the pods that are spread. */ -}}
{{- define "samserve.spread" -}}
{{- $chart := index . 0 -}}
topologySpreadConstraints:
{{- if $chart.Values.topologySpreadConstraints }}
  {{- toYaml $chart.Values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- index . 1 | nindent 8 }}
{{- end }}
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
