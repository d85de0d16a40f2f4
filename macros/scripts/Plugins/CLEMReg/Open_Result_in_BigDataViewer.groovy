// Opens the BigDataViewer dataset of a run.

#@ File (label="Folder of a run, or .xml") result
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

/** The .xml of a run folder, or the file itself. */
def datasetOf(File place) {
    def candidates = place.isFile() ? [place] : ["export/bdv.xml", "run/export/bdv.xml", "bdv.xml"].collect { new File(place, it) }
    candidates.find { it.isFile() && it.name.endsWith(".xml") }
}

def load(String name) {
    try {
        getClass().classLoader.loadClass(name)
    } catch (ClassNotFoundException absent) {
        clemreg.fail("This ImageJ has no BigDataViewer (" + absent.message + "): it is part of Fiji.")
    }
}

clemreg.attempt {
    def xml = datasetOf(result)
    if (xml == null) clemreg.fail("There is no BigDataViewer dataset in " + result + "\nMake one with Export to BigDataViewer or MoBIE.")
    def options = load("bdv.viewer.ViewerOptions").options()
    def progress = load("bdv.export.ProgressWriterConsole").newInstance()
    load("bdv.BigDataViewer").open(xml.absolutePath, xml.name, progress, options)
}
