// Opens the BigDataViewer dataset of a run.

#@ File (label=".xml, or a run: its folder, or a file in it") result
#@ StatusService status
#@ LogService log
#@ TaskService tasks
#@ UIService ui

clemreg = new GroovyShell(getClass().classLoader, binding).evaluate(
    new File(new File(binding.getVariable("javax.script.filename").toString()).absoluteFile.parentFile, "launcher.lib"))

/** The .xml of a run folder, or of the folder of a file such as report.html, or the file itself. */
def datasetOf(File place) {
    if (place.isFile() && place.name =~ /(?i)\.xml$/) return place
    def folder = place.isFile() ? place.absoluteFile.parentFile : place
    ["export/bdv.xml", "run/export/bdv.xml", "bdv.xml"].collect { new File(folder, it) }.find { it.isFile() }
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
