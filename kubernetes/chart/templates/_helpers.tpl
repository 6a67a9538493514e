{{- define "alexnet-triton.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The labels that select the pods of a component: (dict "root" $ "component" "triton") */}}
{{- define "alexnet-triton.selector" -}}
app.kubernetes.io/name: alexnet-triton
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "alexnet-triton.labels" -}}
{{ include "alexnet-triton.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* What every pod of ours says of itself: it is nobody, and asks nothing of Kubernetes. */}}
{{- define "alexnet-triton.pod" -}}
serviceAccountName: {{ include "alexnet-triton.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "alexnet-triton.selector" $ | nindent 8 }}
  {{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "alexnet-triton.hardened" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Requests are limits: what Triton starts follows its cores. (dict "cores" 4 "memory" "8Gi" "gpu" true) */}}
{{- define "alexnet-triton.resources" -}}
resources:
  {{- range list "requests" "limits" }}
  {{ . }}: {cpu: {{ $.cores }}, memory: {{ $.memory }}{{ if $.gpu }}, nvidia.com/gpu: 1{{ end }}}
  {{- end }}
{{- end }}

{{- define "alexnet-triton.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "alexnet-triton.name" .root }}-{{ .component }}
  labels:
    {{- include "alexnet-triton.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  # A pod that is not ready answers nobody, and holds up no drain of its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "alexnet-triton.selector" . | nindent 6 }}
{{- end }}

{{/*
The requests in all of this release's Tritons: those that wait, and those that are computed, by Little's law the seconds
computed in a second. The autoscaler divides this sum by its pods. `classify` is left out: it counts what its steps count.
*/}}
{{- define "alexnet-triton.work" -}}
{{- $these := printf "namespace=%q, service=\"%s-triton\", model!=\"classify\"" .Release.Namespace (include "alexnet-triton.name" .) -}}
sum(nv_inference_pending_request_count{ {{- $these -}} })
{{- range $step := list "input" "infer" "output" }}
+ sum(rate(nv_inference_compute_{{ $step }}_duration_us{ {{- $these -}} }[1m])) / 1e6
{{- end }}
{{- end }}

{{/* What a schema cannot say of two values. */}}
{{- define "alexnet-triton.check" -}}
{{- $scale := .Values.autoscaling }}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas is %d, above autoscaling.maxReplicas, %d" (int $scale.minReplicas) (int $scale.maxReplicas)) }}
{{- end }}
{{- if and (eq $scale.with "prometheus-adapter") (not .Values.monitoring.enabled) }}
{{- fail "autoscaling.with is prometheus-adapter, which reads what monitoring records: set monitoring.enabled" }}
{{- end }}
{{- range $name, $exit := dict "triton" 25 "gateway" 10 }}
{{- $pod := index $.Values $name }}
{{- if le (int $pod.gracePeriodSeconds) (add (int $pod.preStopSeconds) $exit) }}
{{- fail (printf "%s.gracePeriodSeconds is %d: give more than preStopSeconds and %d s to end, %d" $name (int $pod.gracePeriodSeconds) $exit (add (int $pod.preStopSeconds) $exit)) }}
{{- end }}
{{- end }}
{{- if lt (int .Values.gateway.memoryMib) (mul 16 (int .Values.gateway.bodyMib)) }}
{{- fail (printf "gateway.memoryMib is %d: give 16 times gateway.bodyMib or more, %d" (int .Values.gateway.memoryMib) (mul 16 (int .Values.gateway.bodyMib))) }}
{{- end }}
{{- end }}
