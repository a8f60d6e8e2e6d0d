{{- /* Sizes of memory, in bytes. */ -}}

{{- define "samserve.usesSharedMemory" -}}
{{- if eq (include "samserve.topology" .) "pod" -}}true{{- end -}}
{{- end -}}

{{- /* Size of /dev/shm: embeddings, the pool for requests, and 64 MiB for other files. */ -}}
{{- define "samserve.sharedMemoryBytes" -}}
{{- $embeddings := include "samserve.bytes" .Values.cache.local.memory | int64 -}}
{{- $pool := include "samserve.bytes" .Values.triton.sharedMemoryPool | int64 -}}
{{- add $embeddings $pool 67108864 -}}
{{- end -}}

{{- /* Pages in /dev/shm are charged to the container that first writes to them: the gateway. */ -}}
{{- define "samserve.gatewayMemoryBytes" -}}
{{- $own := include "samserve.bytes" .Values.gateway.memory | int64 -}}
{{- $shared := include "samserve.sharedMemoryBytes" . | int64 -}}
{{- $embeddings := include "samserve.bytes" .Values.cache.local.memory | int64 -}}
{{- add $own (ternary $shared $embeddings (eq (include "samserve.usesSharedMemory" .) "true")) -}}
{{- end -}}
