// Says which Python Fiji's CLEMReg scripts use, whether clemreg works there, and remembers it.

#@ String (visibility="MESSAGE", required=false, value="<html>The Python in which clemreg is installed, or the folder of its environment.<br>Leave it empty to look at what is set up now.</html>") message
#@ File (label="Python or environment folder", required=false, persist=false) interpreter
#@ Boolean (label="Remember it", value=true, persist=false) remember
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui
#@output String report

import ij.Prefs

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))
clemreg.python = interpreter == null ? "" : interpreter.path

clemreg.attempt {
    def version = clemreg.run("clemreg", ["--version"])
    def findings = clemreg.run("clemreg doctor", ["doctor"])
    if (interpreter != null && remember) {
        // The Python itself and not its environment, since macros start it by exec().
        def found = clemreg.command()[0]
        Prefs.set("clemreg.python", found)
        Prefs.savePreferences()
        findings += "remembered: " + found
    }
    report = (version + findings).join("\n")
    clemreg.tell(report)
}
