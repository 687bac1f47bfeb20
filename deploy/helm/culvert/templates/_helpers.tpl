{{- define "culvert.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of everything that belongs to the agent. */}}
{{- define "culvert.agent" -}}
{{- include "culvert.name" . }}-agent
{{- end -}}

{{- define "culvert.selector" -}}
app.kubernetes.io/name: {{ include "culvert.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "culvert.labels" -}}
{{ include "culvert.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The name of everything that belongs to the controller. */}}
{{- define "culvert.controller" -}}
{{- include "culvert.name" . }}-controller
{{- end -}}

{{- define "culvert.controllerSelector" -}}
app.kubernetes.io/name: {{ include "culvert.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "culvert.controllerLabels" -}}
{{ include "culvert.controllerSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "culvert.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "culvert.agent" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed where serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "culvert.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The port of ADDRESS:PORT. */}}
{{- define "culvert.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* Where the kubelet, which shares the host's network, reaches a server that listens on ADDRESS:PORT. */}}
{{- define "culvert.probeHost" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if eq $host "0.0.0.0" -}}
127.0.0.1
{{- else if eq $host "::" -}}
::1
{{- else -}}
{{- $host -}}
{{- end -}}
{{- end -}}

{{/* A probe of a path of the health server. */}}
{{- define "culvert.get" -}}
{{- $root := index . 0 -}}
httpGet:
  host: {{ include "culvert.probeHost" $root.Values.healthz.bindAddress | quote }}
  port: healthz
  path: {{ index . 1 }}
{{- end -}}

{{/* Prometheus comes from elsewhere: it cannot scrape the loopback address. */}}
{{- define "culvert.checkScrape" -}}
{{- if or .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- if regexMatch "^(127\\.|\\[::1\\])" .Values.metrics.bindAddress -}}
{{- fail (printf "metrics.bindAddress is %s, which nobody outside the node reaches: podMonitor and serviceMonitor need another, such as 0.0.0.0:10249" .Values.metrics.bindAddress) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- fail "podMonitor.enabled and serviceMonitor.enabled: one of them is enough, both would scrape everything twice" -}}
{{- end -}}
{{- end -}}
