// Real SciJava (scijava-common 2.56) with Groovy as its language: reads, lists and runs scripts.
// What differs from a Fiji of today: that release reads parameters behind a comment mark and with
// OUTPUT in capitals, so the test gives it //@ for #@; it has no tasks, so scripts get the service
// below, which makes none; ImagePlus is a name that imagej-legacy brings; and imagej-common in the
// same jar is for a newer SciJava, so it is left out.

import groovy.json.JsonOutput
import org.scijava.Context
import org.scijava.app.StatusService
import org.scijava.log.LogService
import org.scijava.module.ModuleService
import org.scijava.plugin.PluginService
import org.scijava.script.AbstractScriptLanguage
import org.scijava.script.AdaptedScriptLanguage
import org.scijava.script.ScriptFinder
import org.scijava.script.ScriptInfo
import org.scijava.script.ScriptService
import org.scijava.service.AbstractService
import org.scijava.service.SciJavaService
import org.scijava.ui.UIService

interface TaskService extends SciJavaService { Object createTask(String name) }

class NoTasks extends AbstractService implements TaskService { Object createTask(String name) { null } }

/** ImageJ macros are a language of imagej-legacy; here it is enough that the menu knows it. */
class Macros extends AbstractScriptLanguage {
    String getLanguageName() { "IJ1 Macro" }
    List<String> getExtensions() { ["ijm"] }
    javax.script.ScriptEngine getScriptEngine() { null }
}

/** What clemreg takes ImageJ2's gateway for. */
class Gateway {
    Context given
    Context context() { given }
    ModuleService module() { given.service(ModuleService) }
}

class SciJava {
    final Context context = new Context(ScriptService, StatusService, UIService, ModuleService, LogService)
    final ScriptService scripts = context.service(ScriptService)
    final Gateway gateway = new Gateway(given: context)

    SciJava() {
        def plugins = context.service(PluginService)
        plugins.plugins.findAll { it.className.startsWith("net.imagej.") }.each { plugins.removePlugin(it) }
        [new AdaptedScriptLanguage("Groovy"), new Macros()].each {
            context.inject(it)
            scripts.index.add(it, false)
        }
        context.service(UIService).setHeadless(true)
        def tasks = new NoTasks()
        context.inject(tasks)
        context.serviceIndex.add(tasks)
        [TaskService, ij.ImagePlus].each { scripts.addAlias(it) }
    }

    /** Menu paths of the scripts below a folder, as Fiji finds them at its start. */
    String menu(String folder) {
        scripts.addScriptDirectory(new File(folder))
        def found = []
        new ScriptFinder(scripts).findScripts(found)
        JsonOutput.toJson(found.collect { it.menuPath*.name }.sort { it.join(" > ") })
    }

    /** The parameters of a script as SciJava understands them. */
    String parameters(String path) {
        def info = new ScriptInfo(context, new File(path))
        def inputs = info.inputs().collect {
            [name: it.name, type: it.type.simpleName, required: it.required, label: it.label, choices: it.choices,
             visibility: it.visibility.name(), value: it.defaultValue, style: it.widgetStyle, persisted: it.persisted]
        }
        JsonOutput.toJson([inputs: inputs, outputs: info.outputs().collect { [name: it.name, type: it.type.simpleName] }])
    }
}

new SciJava()
