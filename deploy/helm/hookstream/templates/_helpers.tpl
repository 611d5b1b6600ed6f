{{- define "hookstream.fullname" -}}
{{- if contains "hookstream" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-hookstream" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "hookstream.labels" -}}
app.kubernetes.io/name: hookstream
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hookstream.settings" -}}
{{- $settings := dict }}
{{- if .Values.kafkaBinding.secretName }}
{{- $_ := set $settings "HOOKSTREAM_KAFKA_BINDING" "/bindings/kafka" }}
{{- else }}
{{- $_ := set $settings "HOOKSTREAM_BROKERS" (required "brokers, or kafkaBinding.secretName, is required" .Values.brokers) }}
{{- end }}
{{- if .Values.configFile }}
{{- $_ := set $settings "HOOKSTREAM_CONFIG" "/etc/hookstream/config/hookstream.toml" }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- $_ := set $settings $name (toString $value) }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{- /* What the pods of all roles have in common, and what is the role's own. Takes root, role and own (its values). */ -}}
{{- define "hookstream.pod" -}}
{{- $values := .root.Values -}}
metadata:
  annotations:
    kubectl.kubernetes.io/default-container: hookstream
    checksum/config: {{ printf "%s%s" (include "hookstream.settings" .root) .root.Values.configFile | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "hookstream.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "hookstream.fullname" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with get .own "priorityClassName" | default $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with get .own "nodeSelector" | default $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with get .own "tolerations" | default $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with get .own "affinity" | default $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- $root := .root }}
    {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - topologyKey: {{ $key }}
      maxSkew: 1
      whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "hookstream.labels" $root | nindent 10 }}
      matchLabelKeys: [app.kubernetes.io/component]
    {{- end }}
  {{- end }}
  containers:
    - name: hookstream
      image: "{{ $values.image.repository }}:{{ $values.image.tag | default .root.Chart.AppVersion }}"
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: [{{ .role }}]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      envFrom:
        - configMapRef: {name: {{ include "hookstream.fullname" .root }}}
        {{- with $values.existingSecrets.env }}
        - secretRef: {name: {{ . }}, optional: true}
        {{- end }}
        {{- with $values.extraEnvFrom }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        - name: HOOKSTREAM_INSTANCE
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        {{- with get .own "extraEnv" | default $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: http, containerPort: 9400, protocol: TCP}
      startupProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 1
        timeoutSeconds: 5
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 2
      resources:
        {{- toYaml .own.resources | nindent 8 }}
      volumeMounts:
        - {name: secrets, mountPath: /etc/hookstream/secrets, readOnly: true}
        {{- if $values.kafkaBinding.secretName }}
        - {name: kafka-binding, mountPath: /bindings/kafka, readOnly: true}
        {{- end }}
        {{- if $values.configFile }}
        - {name: config, mountPath: /etc/hookstream/config, readOnly: true}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          - secret: {name: {{ $values.existingSecrets.files }}, optional: true}
    {{- with $values.kafkaBinding.secretName }}
    - name: kafka-binding
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- if $values.configFile }}
    - name: config
      configMap: {name: {{ include "hookstream.fullname" .root }}-config}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
