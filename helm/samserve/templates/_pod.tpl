{{- /* What a pod has besides its containers. */ -}}

{{- /* Draining, calls that end, and what closing takes; Triton ends after that. */ -}}
{{- define "samserve.terminationSeconds" -}}
{{- $triton := ternary 10 0 (eq .Values.engine "triton") -}}
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
topologySpreadConstraints:
{{- if .Values.topologySpreadConstraints }}
  {{- toYaml .Values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "samserve.selectorLabels" . | nindent 8 }}
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
{{- include "samserve.modelsVolume" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
