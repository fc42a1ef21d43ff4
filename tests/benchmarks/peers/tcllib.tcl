# tcllib's smtpd, accepting and discarding: tclsh tcllib.tcl PORT, or "probe" to see if it is there.
if {[catch {package require smtpd}]} { exit 1 }
if {[lindex $argv 0] eq "probe"} { exit 0 }
proc discard {sender recipients message} {}
smtpd::configure -deliver discard
smtpd::start 127.0.0.1 [lindex $argv 0]
vwait forever
