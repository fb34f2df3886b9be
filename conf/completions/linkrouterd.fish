complete -c linkrouterd -s c -l config -d 'Configuration file [default: /etc/linkrouterd/linkrouterd.conf; if there is none, /etc/qpid-dispatch/qdrouterd.conf; the latter first if the program is started as qdrouterd]' -r -F
complete -c linkrouterd -l hash-password -d 'Print the line of USER for saslPasswordFile, with the password from standard input, and exit' -r
complete -c linkrouterd -s I -l include -d 'Accepted for compatibility and ignored (qdrouterd: directory of its Python library)' -r -F
complete -c linkrouterd -s P -l pidfile -d 'With --daemon: file to write the process id to' -r -F
complete -c linkrouterd -s U -l user -d 'With --daemon: account to run as' -r -f -a "(__fish_complete_users)"
complete -c linkrouterd -l trace-device -d 'Trace the frames of one device only, by its IP address, network, or container-id (`*` for any text); may be given several times' -r
complete -c linkrouterd -l check -d 'Validate the configuration, print every finding, and exit: 0 if it can run, 78 if not. The file may follow without --config'
complete -c linkrouterd -l probe -d 'As --check; then dial every connector, tell step by step what comes of it, and exit: 0 if all are well, 69 if not'
complete -c linkrouterd -s h -l help -d 'Print help'
complete -c linkrouterd -s d -l daemon -d 'Run in the background'
complete -c linkrouterd -s T -l test-hooks -d 'Accepted for compatibility and ignored'
complete -c linkrouterd -s v -l version -d 'Print the version'
