{{- /* What gateway and Triton share, in bytes. */ -}}

{{- define "samserve.sharesMemory" -}}
{{- if eq (include "samserve.shape" .) "pod" -}}true{{- end -}}
{{- end -}}

{{- /* Embeddings and scratch, and a little for what else lies in /dev/shm. */ -}}
{{- define "samserve.sharedBytes" -}}
{{- $embeddings := include "samserve.bytes" .Values.cache.memory | int64 -}}
{{- $scratch := include "samserve.bytes" .Values.cache.scratch | int64 -}}
{{- add $embeddings $scratch 67108864 -}}
{{- end -}}

{{- /* Pages in /dev/shm count as those of the container that touches them first: the gateway. */ -}}
{{- define "samserve.gatewayBytes" -}}
{{- $own := include "samserve.bytes" .Values.gateway.memory | int64 -}}
{{- $shared := include "samserve.sharedBytes" . | int64 -}}
{{- $embeddings := include "samserve.bytes" .Values.cache.memory | int64 -}}
{{- add $own (ternary $shared $embeddings (eq (include "samserve.sharesMemory" .) "true")) -}}
{{- end -}}
