{{- /* The model repository: its path, volume and init containers. */ -}}

{{- /* `true` if the gateway reads the models from its own image, without a volume. */ -}}
{{- define "samserve.modelsInGatewayImage" -}}
{{- with .Values -}}
{{- if and (eq .engine "onnx") (eq .models.source "image") (eq .models.image.repository "") -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{- define "samserve.modelsImagePath" -}}
{{- with .Values.models.image -}}
{{- default (ternary "/opt/samserve/models" "/models" (eq .repository "")) .path -}}
{{- end -}}
{{- end -}}

{{- define "samserve.modelsPath" -}}
{{- with .Values.models -}}
{{- if include "samserve.modelsInGatewayImage" $ -}}
{{- include "samserve.modelsImagePath" $ -}}
{{- else if eq .source "claim" -}}
{{- printf "/models/%s" (trimAll "/" .claim.path) -}}
{{- else if eq .source "pull" -}}
/models/repository
{{- else -}}
/models
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "samserve.modelsMount" -}}
{{- if not (include "samserve.modelsInGatewayImage" .) }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end -}}

{{- define "samserve.modelsVolume" -}}
{{- $models := .Values.models -}}
{{- $claim := ternary $models.claim.name (ternary $models.pull.claim "" (eq $models.source "pull")) (eq $models.source "claim") -}}
{{- if not (include "samserve.modelsInGatewayImage" .) }}
- name: models
  {{- if $claim }}
  persistentVolumeClaim:
    claimName: {{ $claim }}
    {{- if eq $models.source "claim" }}
    readOnly: true
    {{- end }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ $models.sizeLimit }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Init containers that copy or pull the models into the volume. */ -}}
{{- define "samserve.modelsInitContainers" -}}
{{- $models := .Values.models -}}
{{- if and (eq $models.source "image") (not (include "samserve.modelsInGatewayImage" .)) }}
{{- $image := ternary $models.image .Values.image (ne $models.image.repository "") }}
- name: copy-models
  image: {{ include "samserve.image" (list $image .Chart.AppVersion) }}
  imagePullPolicy: {{ $image.pullPolicy }}
  command: [cp, -R, {{ printf "%s/." (include "samserve.modelsImagePath" .) | quote }}, /models-volume/]
  resources:
    {{- include "samserve.smallResources" . | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models-volume
{{- else if eq $models.source "pull" }}
{{- range $number, $model := $models.pull.models }}
- name: pull-{{ $number }}
  image: {{ include "samserve.image" (list $models.pull.image $.Chart.AppVersion) }}
  imagePullPolicy: {{ $models.pull.image.pullPolicy }}
  command: [samserve, models, pull, {{ $model.name | quote }}]
  args:
    - --repository={{ include "samserve.modelsPath" $ }}
    # Models that exist in the claim are not exported again.
    - --skip-existing
    - --checkpoint-dir=/tmp/checkpoints
    {{- with $model.args }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- toYaml $models.pull.resources | nindent 4 }}
  securityContext:
    {{- toYaml $.Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
    - name: {{ ternary "gateway" "triton" (eq $.Values.engine "onnx") }}-tmp
      mountPath: /tmp
{{- end }}
{{- end }}
{{- end -}}
